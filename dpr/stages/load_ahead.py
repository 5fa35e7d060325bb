"""Start loading, while passages are encoded, what a later stage will need at once.

Loading an encoder or PyTorch takes seconds, where coding a few segments or encoding some hundred questions takes a
fraction of one.
"""

from functools import partial

from dpr.index.coding import prepare
from dpr.run import Run
from dpr.stages.diff import Changes
from dpr.stages.gate import begin_gate
from dpr.stages.new_sentences import sentences_work
from dpr.stages.question_vectors import questions_work
from dpr.stages.train import train_work


def begin_index(run: Run, changes: Changes) -> None:
    """Begin to load what the stages after `embed` will need, if anything is embedded."""
    if not changes.embed_rows:
        return
    warm_coders(run, sum(planned.rows for planned in changes.planned))
    begin_gate(run)
    if run.base is None:
        run.executor.begin("train", train_work(run))
        run.executor.begin("questions", questions_work(run))
    else:
        run.executor.begin("sentences", sentences_work(run))


def warm_coders(run: Run, rows: int) -> None:
    """Let processes load what coding this many rows needs."""
    run.executor.warm(partial(prepare, run.executor.hardware()), rows)
