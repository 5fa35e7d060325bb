"""Loss and gradients of a step equal plain PyTorch on one big batch, however the work is divided."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel

from dpr.encoder.spec import EncoderSpec
from dpr.train.batch_plan import Batch, BatchPlan, make_batch, share_of
from dpr.train.gradient_cache import GradientCache, Part
from dpr.train.loss import contrastive
from dpr.train.train_recipe import Objective, Optimiser
from dpr.train.training_set import TrainingSet
from dpr.train.training_step import StepRunner, Towers
from dpr.train.workers import Alone
from tests.train.tiny_training import CPU, first_batch, gradients, make_set, make_spec, make_towers, write_examples

BATCH, TEMPERATURE = 12, 0.1
WHOLE = 10**6


@pytest.fixture(scope="module")
def spec(encoder: Path) -> EncoderSpec:
    return make_spec(encoder)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory, spec: EncoderSpec) -> TrainingSet:
    return make_set(write_examples(tmp_path_factory.mktemp("examples") / "train.jsonl"), spec)


@pytest.fixture(scope="module")
def batch(examples: TrainingSet) -> Batch:
    return first_batch(examples, BATCH)


@pytest.fixture(scope="module")
def plain(encoder: Path, examples: TrainingSet, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients: the paper's objective as a formula, by transformers, one text at a time, with two towers."""
    bodies = {
        side: AutoModel.from_pretrained(encoder, add_pooling_layer=False).eval() for side in ("question", "passage")
    }

    def vector(side: str, ids: np.ndarray) -> Tensor:
        hidden_LH = bodies[side](input_ids=torch.from_numpy(ids.astype(np.int64))[None]).last_hidden_state[0]
        return torch.nn.functional.normalize(hidden_LH.mean(0), dim=0)

    def vectors(side: str, rows: np.ndarray) -> dict[int, Tensor]:
        tokens = examples.question_tokens if side == "question" else examples.passage_tokens
        return {row: vector(side, tokens.select(np.array([row])).ids_T) for row in rows.tolist()}

    wanted, found = vectors("question", batch.questions_B), vectors("passage", batch.passages_P)
    total = torch.zeros(())
    for place, (question, q) in enumerate(wanted.items()):
        positive = int(batch.passages_P[batch.targets_B[place]])
        known = set(examples.positives.of(question).tolist())
        assert positive in known
        terms = {row: torch.exp(q @ p / TEMPERATURE) for row, p in found.items() if row == positive or row not in known}
        total = total - torch.log(terms[positive] / sum(terms.values())) / len(wanted)
    total.backward()
    named = {f"{side}.body.{name}": w.grad for side, body in bodies.items() for name, w in body.named_parameters()}
    return float(total.detach()), {name: gradient for name, gradient in named.items() if gradient is not None}


def run(towers: Towers, examples: TrainingSet, batch: Batch, chunk: int = WHOLE, kept: int = WHOLE) -> float:
    runner = StepRunner(towers, Alone(), GradientCache(CPU, chunk, kept), TEMPERATURE)
    return float(runner.run(examples, batch).loss)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("chunk", "kept"), [(WHOLE, WHOLE), (9, 0), (40, 60), (20, WHOLE)])
@pytest.mark.parametrize("packing", [True, False])
def test_a_step_is_plain_pytorch_on_one_big_batch(
    plain: tuple[float, dict[str, Tensor]],
    spec: EncoderSpec,
    examples: TrainingSet,
    batch: Batch,
    chunk: int,
    kept: int,
    packing: bool,
) -> None:
    assert batch.masked_BP.any()
    assert len(batch.passages_P) < 2 * BATCH  # some are shared
    towers = make_towers(spec, packing=packing)
    loss = run(towers, examples, batch, chunk, kept)
    assert loss == pytest.approx(plain[0], abs=1e-5)
    assert_equal(gradients(towers), plain[1])


def test_a_shared_tower_has_the_sum_of_both_gradients(spec: EncoderSpec, examples: TrainingSet, batch: Batch) -> None:
    shared, two = make_towers(spec, shared=True), make_towers(spec)
    assert run(shared, examples, batch, 40, 60) == pytest.approx(run(two, examples, batch), abs=1e-5)
    of_two = gradients(two)
    sums = {
        name.replace("passage.", "shared."): gradient + of_two[name.replace("passage.", "question.")]
        for name, gradient in of_two.items()
        if name.startswith("passage.")
    }
    assert_equal(gradients(shared), sums)


@pytest.mark.parametrize(("chunk", "kept"), [(40, 60), (12, 0)])
def test_what_is_computed_again_drops_the_same_values(
    spec: EncoderSpec, examples: TrainingSet, batch: Batch, chunk: int, kept: int
) -> None:
    """Memory compared with plain PyTorch, which keeps all activations of the same chunks."""
    towers = make_towers(spec, dropout=0.3)
    torch.manual_seed(1)
    parts = [
        Part(towers.question, examples.question_tokens.select(batch.questions_B)),
        Part(towers.passage, examples.passage_tokens.select(batch.passages_P)),
    ]
    vectors = [torch.zeros(len(part.tokens), part.tower.dim) for part in parts]
    for number, part in enumerate(parts):
        for rows in part.tower.batches(part.tokens.lengths()[order_of(part)], chunk):
            places = order_of(part)[rows]
            vectors[number] = vectors[number].index_put(
                (torch.from_numpy(places),), part.tower.vectors(part.tokens.select(places))
            )
    loss = contrastive(vectors[0], vectors[1], batch, TEMPERATURE).loss
    loss.backward()  # type: ignore[no-untyped-call]
    expected, expected_loss = gradients(towers), float(loss.detach())
    torch.manual_seed(1)
    assert run(towers, examples, batch, chunk, kept) == pytest.approx(expected_loss, abs=1e-6)
    assert_equal(gradients(towers), expected)
    torch.manual_seed(2)
    assert run(towers, examples, batch, chunk, kept) != pytest.approx(expected_loss, abs=1e-3)


def order_of(part: Part) -> np.ndarray:
    return share_of(part.tokens.lengths(), 0, 1)


@pytest.mark.slow
def test_two_workers_of_half_a_batch_are_one_of_the_whole(
    encoder: Path, spec: EncoderSpec, examples: TrainingSet, batch: Batch, tmp_path: Path
) -> None:
    path = write_examples(tmp_path / "train.jsonl")
    workers = [
        subprocess.Popen([sys.executable, "-m", "tests.train.gloo_worker", str(rank), encoder, path, tmp_path])
        for rank in range(2)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    towers = make_towers(spec)
    loss = run(towers, examples, batch)
    # known positives that the other worker encodes are left out, too, and that matters (sentence-transformers 3817)
    own = replace(batch, masked_BP=batch.masked_BP & same_worker(examples, batch))
    assert run(make_towers(spec), examples, own) > loss + 0.01
    for rank in range(2):
        found = load_file(tmp_path / f"{rank}.safetensors")
        assert float(found.pop("loss")) == pytest.approx(loss, abs=1e-5)
        assert_equal(found, gradients(towers))


def same_worker(examples: TrainingSet, batch: Batch) -> np.ndarray:
    """Return for each question and passage whether one of two workers encodes both."""
    questions_B, passages_P = np.zeros(len(batch.questions_B), np.int64), np.zeros(len(batch.passages_P), np.int64)
    questions_B[share_of(examples.question_tokens.lengths()[batch.questions_B], 1, 2)] = 1
    passages_P[share_of(examples.passage_tokens.lengths()[batch.passages_P], 1, 2)] = 1
    same_BP: np.ndarray = questions_B[:, None] == passages_P
    return same_BP


def test_shares_are_all_rows_once_and_about_equally_many_tokens() -> None:
    lengths_N = np.random.default_rng(0).integers(5, 250, 101)
    shares = [share_of(lengths_N, rank, 4) for rank in range(4)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(101))
    tokens = [int(lengths_N[share].sum()) for share in shares]
    assert max(tokens) - min(tokens) < 400


def test_ranks_count_only_what_is_a_negative(examples: TrainingSet) -> None:
    batch = make_batch(examples, 0, np.array([0, 1]), np.array([0, 1]), np.array([5, 6]))
    masked_BP = np.array([[False, False, True, False], [False, False, False, False]])
    batch = Batch(0, batch.questions_B, batch.passages_P, np.array([0, 1]), masked_BP)
    # question 0: its own 3rd of four, of which one is masked; question 1: first
    scores_BP = torch.tensor([[1.0, 2.0, 9.0, 0.0], [0.0, 5.0, 1.0, 1.0]])
    scored = contrastive(scores_BP, torch.eye(4), batch, 1.0)
    assert (scored.ranks_B.tolist(), scored.accuracy, scored.average_rank) == ([2, 1], 0.5, 1.5)


def test_batches_are_the_same_whenever_they_are_asked_for(examples: TrainingSet) -> None:
    plans = [BatchPlan(examples, Objective(batch=5), Optimiser(epochs=3)) for _ in range(2)]
    assert plans[0].steps == 3 * (len(examples) // 5)
    later = [plans[0].batch(step) for step in reversed(range(plans[0].steps))]
    for batch in (plans[1].batch(step) for step in range(plans[0].steps)):
        other = later[-1 - batch.step]
        assert all(
            np.array_equal(getattr(batch, n), getattr(other, n)) for n in ("questions_B", "passages_P", "targets_B")
        )
    seen = [row for step in range(plans[0].steps_per_epoch) for row in plans[0].batch(step).questions_B.tolist()]
    assert len(set(seen)) == len(seen) == 5 * (len(examples) // 5)
    assert plans[0].batch(0).questions_B.tolist() != plans[0].batch(plans[0].steps_per_epoch).questions_B.tolist()
