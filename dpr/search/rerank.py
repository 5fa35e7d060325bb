"""Re-ranking: a cross-encoder, which reads question and passage together, orders the best hits of a search."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dpr.encoder.compute import Compute
from dpr.encoder.cross_encoder_spec import resolve_cross_encoder
from dpr.errors import RecipeError
from dpr.recipe_service import MAX_RERANKED, RerankConfig
from dpr.search.hits import Hit, Side

if TYPE_CHECKING:
    from dpr.encoder.cross_encoder import CrossEncoder


class Reranker:
    """A loaded cross-encoder, and how many hits of a question it reads."""

    def __init__(self, encoder: "CrossEncoder", top: int) -> None:
        self._encoder, self.top = encoder, top
        self.model, self.reranker_id = encoder.spec.name, encoder.spec.reranker_id

    @classmethod
    def open(cls, config: RerankConfig) -> "Reranker":
        """Load the model that is named. Raises EncoderError if it cannot be used to re-rank."""
        from dpr.encoder.cross_encoder import CrossEncoder  # PyTorch takes seconds to import

        return cls(CrossEncoder(resolve_cross_encoder(config), Compute(precision=config.precision)), config.top)

    def rerank(self, questions: Sequence[str], hits_by_question: Sequence[Sequence[Hit]], k: int) -> list[list[Hit]]:
        """Return the best k of the first `top` hits of each question, by the scores of the cross-encoder.

        It reads title and text. Hits with equal scores keep their order. Raises RecipeError as `check_depth` does.
        """
        check_depth(k, self.top)
        read = [hits[: self.top] for hits in hits_by_question]
        repeated = [question for question, hits in zip(questions, read, strict=True) for _ in hits]
        scores = iter(self._encoder.score(repeated, [passage_text(hit) for hits in read for hit in hits]).tolist())
        return [_ordered(hits, [next(scores) for _ in hits])[:k] for hits in read]


def check_depth(k: int, top: int) -> None:
    """Raise RecipeError if more hits are wanted than are re-ranked."""
    if k > top:
        raise RecipeError(
            f"{k} hits are requested, but only the best {top} are re-ranked; request at most {top}, or re-rank more "
            f"with rerank.top (--rerank-top), at most {MAX_RERANKED}"
        )


def passage_text(hit: Hit) -> str:
    """Return the text of a hit that a cross-encoder reads."""
    return f"{hit.title} {hit.text}" if hit.title else hit.text


def _ordered(hits: Sequence[Hit], scores: Sequence[float]) -> list[Hit]:
    order = sorted(range(len(hits)), key=lambda place: (-scores[place], hits[place].rank))
    return [
        replace(hits[place], rank=rank, score=scores[place], before=Side(hits[place].rank, hits[place].score))
        for rank, place in enumerate(order, 1)
    ]
