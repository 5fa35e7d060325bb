"""Tuning, against measuring every setting by hand."""

import itertools
import math
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pytest

from dpr.index.candidates import SearchSettings, rescore, search
from dpr.index.choose import choose
from dpr.index.cost import search_cost
from dpr.index.recall import KnownQuestions
from dpr.index.serving_index import ServingIndex
from dpr.index.training import train
from dpr.index.truth import exact_topk
from dpr.index.tune import Stop, Tuned, TunePoint, tune
from dpr.index.tuned_sentence import describe
from dpr.recipe_index import IndexConfig

NPROBES, RESCORES = [1, 2, 4, 8, 16, 20], [0, 20, 50, 100, 200, 500, 1000]
Vectors = npt.NDArray[np.float16]
Questions = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


@pytest.fixture(autouse=True)
def small_indexes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let questions visit as many lists as they need, even where there are few."""
    monkeypatch.setattr("dpr.index.tune.MARGIN_FROM_LISTS", 1)


@pytest.fixture(scope="module")
def index(vectors_ND: Vectors) -> faiss.Index:
    filled = train(vectors_ND.astype(np.float32), choose(IndexConfig(factory="IVF20,PQ8x6"), 1500, 16), seed=1)
    filled.add(vectors_ND.astype(np.float32))
    return filled


def known_of(vectors_ND: Vectors, questions_QD: Questions, k: int = 20) -> KnownQuestions:
    """Questions with their k exact neighbours among vectors whose ids are their rows."""
    truth = exact_topk(questions_QD, [(np.arange(len(vectors_ND)), vectors_ND)], k)
    return KnownQuestions(questions_QD, *truth, lambda _: lambda ids: vectors_ND[ids])


@pytest.fixture(scope="module")
def known(vectors_ND: Vectors, questions_QD: Questions) -> KnownQuestions:
    return known_of(vectors_ND, questions_QD)


def first_lists(index: faiss.Index, at: int) -> int:
    return max(round(index.nlist**0.5 / 4), math.ceil(2 * at * index.nlist / index.ntotal))


def below(index: faiss.Index, questions_QD: Questions, at: int) -> Questions:
    """How far each centroid (Q, L) is below the best `at` of the first lists; -inf for those."""
    first = first_lists(index, at)
    scores_QL = questions_QD @ index.quantizer.reconstruct_n(0, index.nlist).T
    reached_Q = search(index, questions_QD, at, first)[0][:, -1]
    below_QL = (reached_Q[:, None] - scores_QL) / np.linalg.norm(questions_QD, axis=1)[:, None]
    np.put_along_axis(below_QL, np.argsort(-scores_QL, axis=1)[:, :first], -np.inf, axis=1)
    return below_QL


def found_by_hand(index: faiss.Index, questions_QD: Questions, width: int, nprobe: int, at: int) -> Ids:
    """The hits of plain FAISS if each question visits as many lists as it needs, `nprobe` on average."""
    if not first_lists(index, at) < nprobe < index.nlist:
        return search(index, questions_QD, width, nprobe)[1]
    below_QL = below(index, questions_QD, at)
    margin = np.sort(below_QL.reshape(-1))[nprobe * len(below_QL)]
    visited_Q = (below_QL <= margin).sum(axis=1)
    assert abs(visited_Q.mean() - nprobe) < 0.1
    pairs = zip(questions_QD, np.minimum(visited_Q, 4 * nprobe).tolist(), strict=True)
    return np.concatenate([search(index, question_D[None], width, visited)[1] for question_D, visited in pairs])


def by_hand(index: faiss.Index, setting: tuple[int, int], questions_QD: Questions, truth: tuple[Vectors, Ids]) -> tuple:  # type: ignore[type-arg]
    """Measure the recall of one setting, as a service with it would have it, and its predicted milliseconds."""
    nprobe, candidates = setting
    vectors_ND, true_ids_QK = truth
    found_QK = found_by_hand(index, questions_QD, max(20, candidates), nprobe, 20)
    if candidates:
        _, found_QK = rescore(questions_QD, found_QK, lambda ids: vectors_ND[ids], 20)
    hits = [
        len(set(found[:20].tolist()) & set(true.tolist())) for found, true in zip(found_QK, true_ids_QK, strict=True)
    ]
    sizes = np.array([index.invlists.list_size(number) for number in range(index.nlist)])
    visited = min(nprobe * np.square(sizes).sum() / sizes.sum(), sizes.sum())
    each = search_cost(ServingIndex([index]))
    nanoseconds = (
        each.question_ns
        + each.centroid_ns * index.nlist
        + each.list_ns * nprobe
        + each.vector_ns * visited
        + each.candidate_ns * candidates
    )
    return sum(hits) / (20 * len(hits)), nanoseconds / 1e6


@pytest.mark.parametrize("target", [0.5, 0.9, 0.98])
def test_the_cheapest_point_that_reaches_the_target_is_chosen(
    target: float, index: faiss.Index, vectors_ND: Vectors, questions_QD: Questions, known: KnownQuestions
) -> None:
    tuned = tune(ServingIndex([index]), known, IndexConfig(recall_target=target), 20)
    points = {
        setting: by_hand(index, setting, questions_QD, (vectors_ND, known.ids_QK))
        for setting in itertools.product([1, 2, 3, 4, 6, 8, 12, 16, 20], RESCORES)
    }
    # the powers of two, and one number between the cheapest of them that reaches the target and the one before it
    reaching = [(cost, setting) for setting, (recall, cost) in points.items() if recall >= target]
    nprobe = min((cost, setting) for cost, setting in reaching if setting[0] in NPROBES)[1][0]
    cheapest = min((cost, setting) for cost, setting in reaching if setting[0] in {*NPROBES, 3 * nprobe // 4})
    assert tuned.meets_target
    assert (tuned.settings.nprobe, tuned.settings.rescore, tuned.settings.at) == (*cheapest[1], 20)
    for point in tuned.curve:
        assert (point.recall, point.predicted_ms) == pytest.approx(points[point.nprobe, point.rescore])


def test_a_target_out_of_reach_is_reported(index: faiss.Index, known: KnownQuestions) -> None:
    config = IndexConfig(recall_target=1.0, rescore=0)
    tuned = tune(ServingIndex([index]), known, config, 20)
    assert not tuned.meets_target
    assert tuned.recall == max(point.recall for point in tuned.curve) < 1.0
    assert tuned.settings.rescore == 0


@pytest.mark.parametrize(("nprobe", "candidates"), [(3, None), (None, 50), (3, 50)])
def test_what_the_recipe_fixes_is_kept(
    nprobe: int | None,
    candidates: int | None,
    index: faiss.Index,
    known: KnownQuestions,
) -> None:
    config = IndexConfig(nprobe=nprobe, rescore=candidates)
    tuned: Tuned = tune(ServingIndex([index]), known, config, 20)
    assert tuned.settings.nprobe == (nprobe or tuned.settings.nprobe)
    assert tuned.settings.rescore == (candidates if candidates is not None else tuned.settings.rescore)
    assert tuned == tune(ServingIndex([index]), known, config, 20)


def test_an_exact_index_needs_nothing(vectors_ND: Vectors, known: KnownQuestions) -> None:
    index = faiss.IndexFlatIP(16)
    index.add(vectors_ND.astype(np.float32))
    tuned = tune(ServingIndex([index]), known, IndexConfig(), 20)
    assert (tuned.settings, tuned.recall) == (SearchSettings(nprobe=1, rescore=0), 1.0)


class Watched(ServingIndex):
    """Notes the lists visited by each search."""

    def __init__(self, index: faiss.Index) -> None:
        super().__init__([index])
        self.nprobes: list[int] = []

    def search(self, questions_QD: Questions, k: int, nprobe: int, *rest: Any, **options: Any) -> tuple[Questions, Ids]:
        """Search as the one index does."""
        self.nprobes.append(nprobe)
        return super().search(questions_QD, k, nprobe, *rest, **options)


@pytest.mark.parametrize(
    ("fields", "min_gain", "stop"),
    [
        ({"recall_target": 0.5}, 0.001, Stop.TARGET),
        ({"recall_target": 0.9}, 0.001, Stop.TARGET),
        ({"recall_target": 1.0, "latency_ms": 0.03}, 0.001, Stop.LATENCY),
        ({"recall_target": 1.0, "latency_ms": 0.001}, 0.001, Stop.LATENCY),
        ({"recall_target": 1.0, "rescore": 0}, 0.4, Stop.GAIN),
        ({"recall_target": 1.0, "rescore": 0}, -1.0, Stop.ALL),
        ({"recall_target": 1.0, "rescore": 0, "nprobe": 4}, 0.001, Stop.ALL),
    ],
)
def test_tuning_stops_when_more_is_of_no_use_and_says_so(
    fields: dict[str, float],
    min_gain: float,
    stop: Stop,
    index: faiss.Index,
    known: KnownQuestions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dpr.index.tune.MIN_GAIN", min_gain)
    monkeypatch.setattr("dpr.index.tune.MIN_SHARE", 1.0)
    watched, config = Watched(index), IndexConfig.model_validate(fields)
    tuned = tune(watched, known, config, 20)
    assert tuned.stop == stop
    cost = search_cost(watched)
    candidates = [fields["nprobe"]] if "nprobe" in fields else NPROBES
    bound = {
        Stop.TARGET: tuned.predicted_ms,
        Stop.LATENCY: max(config.latency_ms or 0, cost.milliseconds(watched, 1, 0)),
        Stop.GAIN: cost.milliseconds(watched, 2, 0),
        Stop.ALL: math.inf,
    }[stop]
    between = [nprobe for nprobe in watched.nprobes if nprobe not in candidates]
    assert len(between) <= (stop is Stop.TARGET)
    expected = [n for n in candidates if cost.milliseconds(watched, int(n), 0) <= bound]
    assert [nprobe for nprobe in watched.nprobes if nprobe in candidates][: len(expected)] == expected
    assert {point.nprobe for point in tuned.curve} == set(watched.nprobes)
    costs = [point.predicted_ms for point in tuned.curve]
    assert costs == sorted(costs)
    sentence = describe(tuned, config)
    assert f"{len(costs)} settings were measured, and no more because {stop.value}" in sentence
    assert "\n" not in sentence


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("target", [0.5, 0.9, 1.0])
def test_budgets_are_met_or_their_conflict_is_described(
    share: float,
    target: float,
    index: faiss.Index,
    vectors_ND: Vectors,
    questions_QD: Questions,
    known: KnownQuestions,
) -> None:
    points = {
        setting: by_hand(index, setting, questions_QD, (vectors_ND, known.ids_QK))
        for setting in itertools.product(NPROBES, RESCORES)
    }
    costs = [cost for _, cost in points.values()]
    bound = 0.9 * min(costs) + share * (max(costs) - min(costs))
    config = IndexConfig(recall_target=target, latency_ms=bound)
    tuned = tune(ServingIndex([index]), known, config, 20)
    within = [(recall, cost) for recall, cost in points.values() if cost <= bound]
    reaching = [cost for recall, cost in within if recall >= target]
    assert (tuned.meets_latency, tuned.meets_target) == (bool(within), bool(reaching))
    if reaching:
        assert tuned.predicted_ms <= min(reaching) * (1 + 1e-9)  # less if a number of lists in between reaches it, too
        assert tuned.recall >= target
        assert f"cheapest that reach recall_target {target:g}" in describe(tuned, config)
    elif within:
        # doubling the lists stops once that gains next to nothing
        assert tuned.recall >= max(recall for recall, _ in within) - 0.002
        assert tuned.predicted_ms <= bound
        assert f"miss recall_target {target:g}" in describe(tuned, config)
    else:
        assert tuned.predicted_ms == pytest.approx(min(costs))
        assert "still above latency_ms" in describe(tuned, config)


@pytest.mark.parametrize("at", [10, 100])
def test_settings_are_tuned_for_as_many_hits_as_are_asked_for(
    at: int, index: faiss.Index, vectors_ND: Vectors, questions_QD: Questions
) -> None:
    known = known_of(vectors_ND, questions_QD, 100)
    tuned = tune(ServingIndex([index]), known, IndexConfig(recall_target=0.95), at, 2)
    assert (tuned.settings.at, tuned.meets_target) == (at, True)
    assert tuned.settings.nprobe >= 2
    found_QK = found_by_hand(index, questions_QD, tuned.settings.candidates(at), tuned.settings.nprobe, at)
    if tuned.settings.rescore:
        found_QK = rescore(questions_QD, found_QK, lambda ids: vectors_ND[ids], at)[1]
    pairs = zip(found_QK.tolist(), known.ids_QK[:, :at].tolist(), strict=True)
    recall = np.mean([len(set(found) & set(true)) / at for found, true in pairs])
    assert tuned.recall == pytest.approx(recall, abs=1e-9)
    assert recall >= 0.95
    assert f"recall@{at} " in describe(tuned, IndexConfig(recall_target=0.95))


def test_a_graph_keeps_as_many_candidates_as_the_target_takes(
    vectors_ND: Vectors, questions_QD: Questions, known: KnownQuestions
) -> None:
    graph = faiss.index_factory(16, "HNSW16", faiss.METRIC_INNER_PRODUCT)
    graph.add(vectors_ND.astype(np.float32))
    found = {}
    for target in (0.7, 0.97):
        tuned = tune(ServingIndex([graph]), known, IndexConfig(recall_target=target), 20)
        assert tuned.meets_target
        graph.hnsw.efSearch = tuned.settings.nprobe
        _, found_QC = graph.search(questions_QD, tuned.settings.candidates(20))
        if tuned.settings.rescore:
            found_QC = rescore(questions_QD, found_QC, lambda ids: vectors_ND[ids], 20)[1]
        pairs = zip(found_QC.tolist(), known.ids_QK.tolist(), strict=True)
        assert tuned.recall == pytest.approx(np.mean([len(set(a) & set(b)) / 20 for a, b in pairs]), abs=1e-9)
        found[target] = tuned.settings.nprobe
    assert found[0.7] < found[0.97]


def test_close_to_the_target_smaller_gains_count(vectors_ND: Vectors, questions_QD: Questions) -> None:
    """Twice the lists close half of what is left, which is less than MIN_GAIN at last."""

    class Halving(ServingIndex):
        def search(self, _: Questions, k: int, nprobe: int, *__: Any, **___: Any) -> tuple[Questions, Ids]:
            ids_QK = np.tile(np.arange(k), (2_000, 1))
            missed = round(ids_QK[:, :20].size * 0.008 / nprobe)
            flat = ids_QK[:, :20].copy().reshape(-1)
            flat[:missed] = -1
            ids_QK[:, :20] = flat.reshape(2_000, 20)
            return np.zeros(ids_QK.shape, np.float32), ids_QK

    flat = faiss.index_factory(16, "IVF64,Flat", faiss.METRIC_INNER_PRODUCT)
    flat.train(vectors_ND.astype(np.float32))
    flat.add(vectors_ND.astype(np.float32))
    scores_QK, ids_QK = np.tile(-np.arange(20.0, dtype=np.float32), (2_000, 1)), np.tile(np.arange(20), (2_000, 1))
    known = KnownQuestions(questions_QD, scores_QK, ids_QK, lambda _: lambda ids: vectors_ND[ids])
    tuned = tune(Halving([flat]), known, IndexConfig(recall_target=0.9995), 20)
    assert tuned.meets_target
    assert tuned.settings.nprobe == 16


@pytest.mark.parametrize(
    ("recall", "milliseconds", "is_named"), [(0.99, 25.0, True), (0.99, 26.0, False), (0.98, 1.0, False)]
)
def test_much_cheaper_settings_are_named(recall: float, milliseconds: float, is_named: bool) -> None:
    curve = [
        TunePoint(nprobe=64, margin=None, rescore=100, recall=recall, predicted_ms=milliseconds),
        TunePoint(nprobe=512, margin=None, rescore=100, recall=0.9995, predicted_ms=100.0),
    ]
    tuned = Tuned(SearchSettings(512, 100, 20), 0.9995, 100.0, True, True, Stop.TARGET, curve)
    assert ("; recall 0.9900 would take 25 ms (set recall_target" in describe(tuned, IndexConfig())) == is_named
