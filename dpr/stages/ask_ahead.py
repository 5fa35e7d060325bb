"""Load the encoder of questions while the index is built, where there are questions to encode.

Loading takes seconds, and encoding a few hundred questions a fraction of one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dpr.engine.stage import Stage
from dpr.formats.manifest import CodebookEntry
from dpr.formats.records import read_record
from dpr.run import Run
from dpr.stages.new_sentences import sentences_stage
from dpr.stages.question_vectors import kept_stand_ins, questions_stage
from dpr.stages.train import IndexContext


@contextmanager
def question_encoders_loading(run: Run, context: IndexContext, codebook: CodebookEntry) -> Iterator[None]:
    """Load within the block what the stages `questions` and `sentences` will need; a block that fails releases it."""
    begun = [stage for stage in _stages(run, context, codebook) if _is_open(run, stage)]
    for stage in begun:
        run.executor.begin(stage.name, stage.work)
    try:
        yield
    except BaseException:
        for stage in begun:
            run.executor.cancel(stage.name)
        raise


def _stages(run: Run, context: IndexContext, codebook: CodebookEntry) -> Iterator[Stage[Any, Any]]:
    if kept_stand_ins(run, context) is None:
        yield questions_stage(run, context)[1]
    yield sentences_stage(run, context, codebook)


def _is_open(run: Run, stage: Stage[Any, Any]) -> bool:
    """Tell whether a unit of a stage is still to be done."""
    return any(read_record(run.store, unit.record, stage.kind) is None for unit in stage.units)
