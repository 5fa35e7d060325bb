"""The rank at which each question of the gate was answered, kept with the snapshot for comparison with the next one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dpr.evaluate.questions import QuestionSet
from dpr.fingerprint import fingerprint
from dpr.formats.objects import fetch_object, put_object
from dpr.formats.records import ObjectRef
from dpr.run import Run
from dpr.store import Store
from dpr.store.temporary import temporary_folder

SCHEMA = pa.schema([("question", pa.string()), ("answers", pa.string()), ("rank", pa.int32())])
"""`answers` is a fingerprint of the answers; a question without rank was not answered."""


@dataclass(frozen=True)
class GateQuestion:
    """A question with its answers: ranks are compared only if both are equal."""

    question: str
    answers: str


def put_ranks(store: Store, stem: str, questions: QuestionSet, ranks: Sequence[int | None]) -> ObjectRef:
    """Store the rank of the first answer to each question; None: not answered."""
    rows = {
        "question": questions.texts,
        "answers": [fingerprint([questions.answers, *question.answers]) for question in questions.questions],
        "rank": list(ranks),
    }
    with temporary_folder() as folder:
        path = Path(folder, "ranks.parquet")
        pq.write_table(pa.table(rows, schema=SCHEMA), path, compression="zstd")
        return put_object(store, stem, path)


def read_ranks(store: Store, ref: ObjectRef) -> Mapping[GateQuestion, int | None]:
    """Return the rank of the first answer to each question, verified."""
    table = pq.read_table(fetch_object(store, ref), schema=SCHEMA)
    questions = map(GateQuestion, table["question"].to_pylist(), table["answers"].to_pylist())
    return dict(zip(questions, table["rank"].to_pylist(), strict=True))


def tell_unanswered(run: Run, ref: ObjectRef | None, depth: int) -> None:
    """Show how many questions have no right passage among the first `depth`, with an example, unless all have one."""
    ranks = {} if ref is None else read_ranks(run.store, ref)
    without = [question.question for question, rank in ranks.items() if rank is None]
    if ref is not None and without:
        run.progress.message(
            "gate",
            f"{len(without):,} of {len(ranks):,} questions have no right passage among the first {depth}, such as "
            f"{without[0]!r}; {ref.name} has the rank of each",
        )


def shares_within(ranks: Sequence[int | None], at: Sequence[int]) -> dict[str, float]:
    """Rank → share of questions answered within it (paper, section 5); empty without questions."""
    if not ranks:
        return {}
    return {str(k): sum(rank is not None and rank <= k for rank in ranks) / len(ranks) for k in at}
