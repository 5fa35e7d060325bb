"""The plan of a run: what a recipe means on this machine at this moment."""

from dataclasses import dataclass
from functools import cached_property

from dpr.corpus.plan import plan_slices
from dpr.corpus.rows import Slice
from dpr.encoder.spec import EncoderSpec, resolve
from dpr.evaluate.questions import QuestionSet, load_questions
from dpr.fingerprint import fingerprint
from dpr.recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """What a recipe means on this machine at this moment, before looking at the store."""

    recipe: Recipe
    spec: EncoderSpec
    slices: list[Slice]
    questions: QuestionSet | None

    @classmethod
    def of(cls, recipe: Recipe) -> "Plan":
        """Resolve the encoder, list the corpus, read the gate's questions."""
        questions = load_questions(recipe.gate, recipe.index.seed)
        return cls(recipe, resolve(recipe.encoder), plan_slices(recipe.corpus), questions)

    @cached_property
    def inputs(self) -> str:
        """Fingerprint of all that a snapshot depends on: with the same inputs there is nothing to do."""
        recipe = self.recipe
        asked = [[q.text, list(q.answers)] for q in self.questions.questions] if self.questions else None
        return fingerprint(
            {
                "encoder": self.spec.encoder_id,
                "corpus": recipe.corpus.model_dump(mode="json", exclude={"path"}),
                "slices": [slice_.to_json() for slice_ in self.slices],
                "index": recipe.index.model_dump(mode="json"),
                "gate": recipe.gate.model_dump(mode="json", include={"answers", "at"}),
                "questions": asked,
                "segment_rows": recipe.resources.segment_rows,
                "compact_below": recipe.resources.compact_below,
            }
        )
