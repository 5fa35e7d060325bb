"""Sections of a recipe on how passages become searchable: by their vectors and by their words."""

from typing import Annotated, Literal

from pydantic import Field

from dpr.recipe_section import Section, Share


class IndexConfig(Section):
    """How vectors become a searchable index."""

    factory: str = "auto"
    """FAISS factory string, or `auto`: a rule of the number and width of vectors (docs/formats.md)."""
    nprobe: Annotated[int, Field(ge=1)] | None = None
    """Inverted lists visited per question, or what the search of a graph keeps (efSearch); null: tuned by the gate."""
    rescore: Annotated[int, Field(ge=0, le=100_000)] | None = None
    """Candidates re-scored exactly from the stored vectors; 0: none; null: tuned by the gate."""
    shards: Annotated[int, Field(ge=1, le=1024)] = 1
    """Files that the index of a first night is merged into, each from a run of segments; all are searched."""
    recall_target: Share = 0.999
    """Recall against exact search that tuning aims at: of the first `recall_at` hits, and of the deepest of `gate.at`.
    With it, top-20 accuracy is within 0.2 percentage points of exact search (docs/log.md)."""
    recall_at: Annotated[int, Field(ge=1, le=1000)] = 20
    """How many hits `recall_target` means, and `gate.min_recall` with it."""
    memory_gb: Annotated[float, Field(gt=0.0)] | None = None
    """Memory that the index of one replica may take, all shards together, in 10⁹ bytes; null: no bound."""
    latency_ms: Annotated[float, Field(gt=0.0)] | None = None
    """Most milliseconds for searching and re-scoring one question on one thread, as measured by the gate; null: no
    bound."""
    train_rows: Annotated[int, Field(ge=1)] | None = None
    """Vectors sampled for training; null: a rule of the number of lists."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 7
    """Seed of sampling and k-means."""
    retrain: Literal["auto", "always", "never"] = "auto"
    """When a new codebook is trained; `auto`: when drift says so."""
    max_drift: Annotated[float, Field(gt=0.0)] = 0.2
    """Relative growth of quantisation error, or of list imbalance, above which `auto` retrains."""


class LexicalConfig(Section):
    """How passages are found by their words (BM25), alone or together with their vectors."""

    build: bool = True
    """Whether the snapshot gets an index of words; without it, only dense search is possible."""
    language: str = "english"
    """Language of the passages, by its English name; it decides stop words and stemmer."""
    stop_words: bool = True
    """Leave out the commonest words of the language."""
    stemming: bool = True
    """Reduce words to their stems (Snowball)."""
    grams: Annotated[int, Field(ge=3, le=8)] | None = None
    """In place of stems: all pieces of this many letters of each word, so that words of one family and parts of
    compound words are found, in any language. 5 suits most. The index of words is some five times as large and as
    slow."""
    k1: Annotated[float, Field(ge=0.0, le=10.0)] = 0.9
    """BM25: how much the repetition of a word within a passage counts. In hybrid search it is 0.3, unless `weight` is
    given."""
    b: Share = 0.4
    """BM25: how much the length of a passage counts."""
    mode: Literal["auto", "dense", "bm25", "hybrid"] = "auto"
    """The mode of questions that name none; `auto`: hybrid if the gate shows that it is better, else dense."""
    weight: Annotated[float, Field(ge=0.0)] | None = None
    """Hybrid: factor of the inner product before BM25 is added; null: tuned by the gate."""
    candidates: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Hybrid: how many of the best of each kind of search are compared; null: tuned by the gate."""
