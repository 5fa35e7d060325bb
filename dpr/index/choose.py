"""Which index for how many vectors: the rule behind `factory: auto`, and the check of any other factory string.

The rule, with N vectors of D dimensions:

- N < 1,000: `Flat`, which is exact. Scanning so few takes less time than encoding the question.
- else `IVF{lists},PQ{M}x4`. `lists` is the power of two nearest to 16 * sqrt(N), at most 16,384, or the one nearest to
  4 * sqrt(N) where that is more; and at most 65,536, and N / 39 / `shards`: k-means needs 39 vectors for a centroid,
  and the shortest list of a shard takes the room of 32 vectors. M is the number of subspaces, of four bits each: the
  largest divisor of D that leaves at least two dimensions to a subspace, so a code is 16 times smaller than float32. If
  that leaves more than four, `SQ8` (4 times smaller) is used instead of PQ.
- `memory_gb`: if the index would not fit, M is the largest divisor of D with which it fits, with at most 16 dimensions
  to a subspace. More memory never widens a code beyond the rule: re-scoring from stored vectors restores what a code
  loses, and a wider code is slower to scan.
- training sample: `dpr.index.sample.training_rows`, or all vectors if there are fewer.
"""

import math
import re
from dataclasses import dataclass, replace

import faiss

from dpr.errors import IndexBuildError
from dpr.index.kinds import (
    FAST_BITS,
    Storage,
    inverted,
    reason,
    storage,
)
from dpr.index.sample import ROWS_PER_CENTROID, describe_sample, training_rows
from dpr.index.serving_memory import bytes_per_vector, serving_bytes
from dpr.recipe_index import IndexConfig

EXACT_BELOW_ROWS = 1_000
LISTS_PER_ROOT, SHORT_LISTS = 16, 16_384
"""Short lists hold fewer vectors that are far from a question. Up to so many, they cost less than they spare."""
LEAST_PER_ROOT, MAX_LISTS = 4, 65_536
MIN_GROUP, MAX_GROUP = 2, 16
"""Dimensions of a PQ subspace: the fewest by the rule, and the most in the narrowest code for `memory_gb`."""

_REFINED = re.compile(r",\s*(RFlat|Refine\(.*\))\s*$")


@dataclass(frozen=True)
class IndexPlan:
    """An index to be trained, and the reasons for the choice."""

    factory: str
    dim: int
    rows: int
    """Vectors that it is chosen for."""
    train_rows: int
    """Vectors to sample. A kind that needs no training is still tried out on them."""
    min_train_rows: int
    """Fewer than this cannot train it."""
    mergeable: bool
    """Whether it can be merged from parts; else it is built by one process from all vectors."""
    bytes_per_vector: int
    """Code and id."""
    memory_bytes: int
    """All vectors, centroids included."""
    reasons: list[str]
    """The reasons for the choice, a sentence each."""


def choose(config: IndexConfig, rows: int, dim: int) -> IndexPlan:
    """Choose the index for `rows` vectors of width `dim`, by the rule above or as `config.factory` says. Pure.

    Raises IndexBuildError for a factory string that FAISS refuses, or that needs more training vectors than there are.
    """
    if rows < 1:
        raise IndexBuildError("there are 0 vectors to index; give a corpus with at least one passage")
    factory = factory_of(config)
    if factory == "auto":
        factory, reasons = _within_memory(config, rows, dim, _by_rule(rows, dim, config.shards))
    else:
        reasons = [f"the recipe names factory {config.factory}"]
    if factory_of(config) != config.factory:
        reasons.append("candidates are re-scored from the stored vectors, so the index needs no refinement of its own")
    index = new_index(factory, dim)
    minimum, recommended = training_rows(index)
    if minimum > rows:
        raise IndexBuildError(
            f"index factory {factory} needs at least {minimum} training vectors and there are {rows}; "
            "choose fewer lists or a smaller code, or factory: auto"
        )
    train_rows = min(rows, config.train_rows or recommended)
    if train_rows < minimum:
        raise IndexBuildError(
            f"index factory {factory} needs at least {minimum} training vectors and index.train_rows is {train_rows}; "
            "raise it"
        )
    plan = _plan(config, factory, rows, dim, [*reasons, *describe_sample(index, rows, train_rows)])
    return replace(plan, train_rows=train_rows, min_train_rows=minimum)


def factory_of(config: IndexConfig) -> str:
    """Return the factory string of the recipe, or `auto`, without a refinement (`RFlat`, `Refine(…)`).

    FAISS would keep a second copy of the vectors for it, and its results would depend on the number of hits. All
    candidates are re-scored from the stored vectors, which is the same and exact.
    """
    return _REFINED.sub("", config.factory)


def check_factory(config: IndexConfig, dim: int) -> None:
    """Raise IndexBuildError for a factory string that no index can be made from, whatever its vectors."""
    if factory_of(config) != "auto":
        new_index(factory_of(config), dim)


def keep(config: IndexConfig, factory: str, rows: int, dim: int) -> IndexPlan:
    """Return the plan for `rows` vectors of an index whose codebook is trained already, so few vectors suffice. Pure.

    Raises IndexBuildError if it has outgrown `memory_gb`.
    """
    return _plan(config.model_copy(update={"factory": factory}), factory, rows, dim, [])


def _plan(config: IndexConfig, factory: str, rows: int, dim: int, reasons: list[str]) -> IndexPlan:
    """Return a plan without training."""
    index = new_index(factory, dim)
    memory_bytes = serving_bytes(index, rows, config.shards)
    _check_memory(config, factory, rows, memory_bytes)
    mergeable = storage(index) is not Storage.WHOLE
    whole = [] if mergeable else ["this kind cannot be merged from parts, so one process builds it from all vectors"]
    return IndexPlan(
        factory=factory,
        dim=dim,
        rows=rows,
        train_rows=0,
        min_train_rows=0,
        mergeable=mergeable,
        bytes_per_vector=bytes_per_vector(index),
        memory_bytes=memory_bytes,
        reasons=[*reasons, *whole, _describe_memory(config, memory_bytes)],
    )


def new_index(factory: str, dim: int) -> faiss.Index:
    """Return the untrained inner-product index of a factory string.

    Raises IndexBuildError, with FAISS's reason, if FAISS refuses it.
    """
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise IndexBuildError(
            f"FAISS refuses index factory {factory!r} for inner product and {dim} dimensions ({reason(error)}); choose "
            "another index.factory, or auto"
        ) from error
    ivf = inverted(index)
    if ivf is not None and ivf.nlist < 1:
        raise IndexBuildError(f"index factory {factory!r} has no inverted lists; give it at least 1")
    if isinstance(index, faiss.IndexIDMap):
        raise IndexBuildError(f"index factory {factory!r} maps ids, which dpr does for every index; leave IDMap out")
    return index


def _by_rule(rows: int, dim: int, shards: int) -> tuple[str, list[str]]:
    """Return the factory string of the rule, without regard to memory, and its reasons."""
    if rows < EXACT_BELOW_ROWS:
        return "Flat", [f"{rows} vectors are below {EXACT_BELOW_ROWS}, so search is exact"]
    root = math.sqrt(rows)
    ideal = max(min(LISTS_PER_ROOT * root, SHORT_LISTS), LEAST_PER_ROOT * root)
    bound = max(1.0, min(rows / ROWS_PER_CENTROID / shards, MAX_LISTS))
    lists = 2 ** min(round(math.log2(ideal)), math.floor(math.log2(bound)))
    in_shards = "" if shards == 1 else f" / {shards} shards"
    reasons = [
        f"{lists} lists: the power of two near {LISTS_PER_ROOT} * sqrt({rows}), at most {SHORT_LISTS}, or near "
        f"{LEAST_PER_ROOT} * sqrt({rows}) if that is more; at most {rows} / {ROWS_PER_CENTROID}{in_shards} and "
        f"{MAX_LISTS}"
    ]
    numbers = max((m for m in range(1, dim // MIN_GROUP + 1) if dim % m == 0), default=0)
    if numbers * 2 * MIN_GROUP < dim:
        return f"IVF{lists},SQ8", [*reasons, f"SQ8: {dim} dimensions do not divide into groups of 2 to 4 for PQ"]
    code, code_bytes = f"PQ{numbers}x{FAST_BITS}", -(-numbers * FAST_BITS // 8)
    times = 4 * dim / code_bytes
    reasons.append(f"{code}: {code_bytes} bytes for {4 * dim} of float32, {times:.0f} times less")
    return f"IVF{lists},{code}", reasons


def _within_memory(config: IndexConfig, rows: int, dim: int, ruled: tuple[str, list[str]]) -> tuple[str, list[str]]:
    """Return the index of the rule, or the one with the widest narrower code that `memory_gb` has room for."""
    factory, reasons = ruled
    if config.memory_gb is None:
        return ruled
    lists, _, code = factory.partition(",")
    divisors = [m for m in range(dim // MIN_GROUP, 0, -1) if dim % m == 0 and m * MAX_GROUP >= dim]
    narrower = [f"{lists},PQ{m}x{FAST_BITS}" for m in divisors if code and f"PQ{m}x{FAST_BITS}" != code]
    for candidate in [factory, *narrower]:
        if fits(config, candidate, rows, dim):
            if candidate == factory:
                return ruled
            ruled_gb = serving_bytes(new_index(factory, dim), rows, config.shards) / 1e9
            return candidate, [
                *reasons[:-1],
                f"{candidate.partition(',')[2]}: the widest code that memory_gb {config.memory_gb:g} has room for; "
                f"{code} would take {ruled_gb:.3g} GB",
            ]
    return (narrower[-1] if narrower else factory), reasons


def fits(config: IndexConfig, factory: str, rows: int, dim: int) -> bool:
    """Return whether an index of that factory has room in `memory_gb`."""
    return (
        config.memory_gb is None
        or serving_bytes(new_index(factory, dim), rows, config.shards) <= 1e9 * config.memory_gb
    )


def _check_memory(config: IndexConfig, factory: str, rows: int, needed_bytes: int) -> None:
    if config.memory_gb is not None and needed_bytes > config.memory_gb * 1e9:
        narrowest = "even its narrowest code, " if config.factory == "auto" else ""
        raise IndexBuildError(
            f"index.memory_gb is {config.memory_gb:g} and {rows} vectors need {needed_bytes / 1e9:.3g} GB with "
            f"{narrowest}{factory}; allow that much, or index fewer passages"
        )


def _describe_memory(config: IndexConfig, memory_bytes: int) -> str:
    bound = "" if config.memory_gb is None else f", of memory_gb {config.memory_gb:g}"
    shards = "" if config.shards == 1 else f" in {config.shards} shards"
    return f"the index takes {memory_bytes / 1e9:.3g} GB{shards}{bound}"
