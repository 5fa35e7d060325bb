"""The gate's measurements of a snapshot before it was published; a part of its document.

Snapshots of before call two fields `asked` and `new_asked`; they are read as `questions` and `new_sentences`.
"""

from pydantic import AliasChoices, Field

from dpr.formats.cut_texts import CutTexts
from dpr.formats.lexical_entry import ModesReport
from dpr.formats.records import Document, Identifier, ObjectRef


class IndexLoss(Document):
    """What the index loses against exact search: questions answered within the first `IndexEntry.at` hits."""

    kind: str
    """`questions`: those of the recipe; `sentences`: sentences of passages, each answered by its own passage."""
    questions: int = Field(validation_alias=AliasChoices("questions", "asked"))
    """Questions that settings were not chosen on, unless they are fewer than 50."""
    lost: int
    """Questions that exact search answers and the index does not."""
    won: int
    """Questions that only the index answers: it missed a better hit, so the answer moved up."""
    at_most: float
    """The share of lost questions is below this with a confidence of 95%; won questions do not count."""


class Fp8Figure(Document):
    """One figure over all questions, with the same passages in both kinds of arithmetic."""

    exact: float
    """With passages in bf16, or in fp32 where that is the more exact choice."""
    fp8: float
    low: float
    high: float
    """`low` and `high` bound the 95% interval of `fp8` minus `exact`."""
    p_value: float
    """The probability of a difference at least this large if both are equally good (`dpr.evaluate.significance`)."""
    won: int
    """Questions with a larger value in fp8."""
    lost: int


class Fp8Loss(Document):
    """What passages in fp8 lose on some questions."""

    kind: str
    """`questions`: those of the recipe; `sentences`: sentences of passages, each answered by its own passage."""
    questions: int
    accuracy: Fp8Figure
    """Share of questions with an answer among the first 20 passages."""
    ndcg: Fp8Figure
    """nDCG@10 of the first right passage."""


class Fp8Report(Document):
    """What the stored vectors in fp8 lose against others of the same passages; it belongs to the encoder id."""

    passages: int
    """Passages that were encoded again, among which both kinds were searched."""
    of_rows: int
    """Live rows of the collection when this was measured."""
    exact: str
    """The arithmetic of the other vectors: `bf16` or `fp32`."""
    questions_id: Identifier
    """Fingerprint of the recipe's questions and their answers."""
    losses: list[Fp8Loss]
    summary: str
    """The figures in one sentence."""


class GateReport(Document):
    """What the gate measured; recalls are against exact search, of the first `IndexEntry.at` hits."""

    questions: int
    question_kind: str
    """`questions`: those of the recipe; `sentences`: sentences of passages in their place."""
    questions_id: Identifier
    """Fingerprint of the questions, which names the folder of their cached exact neighbours."""
    questions_cut: CutTexts = CutTexts()
    """What the questions lost to the encoder's token limit."""
    recall: float
    measured_on: int
    """Questions that `recall` was measured on."""
    tuned_recall: float
    tuned_on: int
    """Questions that the settings were chosen on."""
    new_recall: float | None
    """Recall of the passages that were added since the codebook was trained, with sentences of theirs as questions
    (`dpr.index.truth.recall_of_new`); None: there are none."""
    new_sentences: int = Field(validation_alias=AliasChoices("new_sentences", "new_asked"))
    """Sentences that this was measured on."""
    deeper_recall: float | None
    """Recall of as many hits as the index's deeper settings were tuned for; None: it has none."""
    meets_recall_target: bool
    predicted_ms: float
    """Milliseconds that one question takes on one thread, as predicted."""
    meets_latency: bool
    settings: str
    """The choice of settings in one sentence."""
    accuracy_index: dict[str, float] = Field(default_factory=dict)
    """Rank → share of questions answered within it, by the index; empty without questions of the recipe."""
    accuracy_exact: dict[str, float] = Field(default_factory=dict)
    """The same by exact search."""
    ranks: ObjectRef | None = None
    """The rank at which the index answers each question (`dpr.stages.answer_ranks`); None without questions of the
    recipe."""
    losses: list[IndexLoss] = Field(default_factory=list)
    """Of the recipe's questions, and of sentences of passages; empty in older snapshots."""
    fp8: Fp8Report | None = None
    """None: passages are not encoded in fp8."""
    modes: ModesReport | None = None
    """None: the snapshot has no index of words, or the recipe no questions."""
