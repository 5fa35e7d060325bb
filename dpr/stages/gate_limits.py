"""The gate's demands on a snapshot before it is published."""

from dpr.errors import GateError
from dpr.evaluate.significance import MIN_QUESTIONS, share_at_least
from dpr.formats.gate_report import GateReport
from dpr.recipe import Recipe
from dpr.stages.fp8_loss import describe_fp8_loss
from dpr.stages.gate import GateResult
from dpr.stages.index_loss import describe_loss
from dpr.stages.live_answers import SIGNIFICANCE

MAX_LOSS = 0.2
"""The measured recall may be this much below that of tuning: three standard deviations of the difference between two
samples of 50 questions, whose single recalls have a standard deviation of 1/3."""


def check_gate(recipe: Recipe, result: GateResult) -> None:
    """Raise GateError, with the measured and the demanded figure, unless the report meets the recipe's demands."""
    gate, report, recall = recipe.gate, result.report, f"recall@{recipe.index.recall_at}"
    if report.recall < report.tuned_recall - MAX_LOSS:
        raise GateError(
            f"{recall} is {report.tuned_recall:.4f} for the questions that the search was tuned on and "
            f"{report.recall:.4f} for the others; nothing was published: chance does not explain this, so give more "
            "questions that are like each other (gate.questions), or choose another index.factory"
        )
    if report.recall < gate.min_recall:
        raise GateError(
            f"{recall} of the index is {report.recall:.4f}, the recipe demands {gate.min_recall} "
            f"(gate.min_recall); nothing was published: {_advice(recipe, result)}, or lower the demand"
        )
    if report.new_recall is not None and report.new_recall < gate.min_recall:
        raise GateError(
            f"{recall} of the passages that are new is {report.new_recall:.4f}, the recipe demands "
            f"{gate.min_recall} (gate.min_recall); nothing was published: set index.retrain to always for a night, so "
            "that the index learns what is new, or lower the demand"
        )
    deepest = max(gate.at)
    if report.questions >= MIN_QUESTIONS and report.accuracy_exact.get(str(deepest)) == 0.0:
        raise GateError(
            f"none of the {report.questions:,} questions is answered by any of the {deepest} passages nearest to it; "
            "nothing was published: look at gate.questions, at gate.answers, which says what answers are, and at the "
            "encoder"
        )
    _check_losses(recipe, report)
    _check_fp8(recipe, report)
    for k, minimum in sorted(gate.min_accuracy.items()):
        reached = report.accuracy_index[str(k)]
        if reached < minimum:
            raise GateError(
                f"top-{k} accuracy is {reached:.4f}, the recipe demands {minimum} (gate.min_accuracy); nothing was "
                "published: look at the corpus and the encoder, or lower the demand"
            )


def _check_losses(recipe: Recipe, report: GateReport) -> None:
    """Raise GateError if the index loses more than the recipe allows, beyond what chance explains."""
    allowed, at = recipe.gate.max_loss, recipe.index.recall_at
    if allowed is None:
        return
    for loss in report.losses:
        surely = share_at_least(max(0, loss.lost - loss.won), loss.questions)
        if surely > allowed:
            raise GateError(
                f"{describe_loss(loss, at)}; that is more than {100 * surely:.2f} with the same confidence, and the "
                f"recipe allows {100 * allowed:g} (gate.max_loss {allowed:g}); nothing was published: raise "
                "index.recall_target, or gate.max_loss"
            )


def _check_fp8(recipe: Recipe, report: GateReport) -> None:
    """Raise GateError if passages in fp8 lose more than the recipe allows, and chance does not explain it."""
    fp8, allowed = report.fp8, recipe.gate.max_fp8_loss
    if fp8 is None:
        return
    losses = [loss for loss in fp8.losses if loss.questions >= MIN_QUESTIONS]
    for loss in losses:
        figures = (loss.accuracy, loss.ndcg)
        level = SIGNIFICANCE / (len(losses) * len(figures))
        if any(figure.exact - figure.fp8 > allowed and figure.p_value < level for figure in figures):
            raise GateError(
                f"{describe_fp8_loss(loss, fp8.exact)}; the recipe allows {100 * allowed:g} (gate.max_fp8_loss "
                f"{allowed:g}); nothing was published: set encoder.precision to bf16, leave products out of "
                "encoder.fp8_products, or raise gate.max_fp8_loss"
            )


def _advice(recipe: Recipe, result: GateResult) -> str:
    """Return which field of the recipe limits the recall, and which settings reached more."""
    if result.report.meets_recall_target:
        return f"it was tuned to index.recall_target {result.recall_target:g}, so raise that"
    best = max(result.curve, key=lambda point: point.recall)
    setting = f"nprobe {best.nprobe} with rescore {best.rescore} reaches {best.recall:.4f}"
    if best.recall >= recipe.gate.min_recall and recipe.index.latency_ms is not None:
        return f"{setting} at a measured {best.predicted_ms:.3g} ms, so raise index.latency_ms"
    fixed = [f"index.{name}" for name in ("nprobe", "rescore") if getattr(recipe.index, name) is not None]
    if fixed:
        advice = f"leave {' and '.join(fixed)} to the gate"
    elif recipe.index.latency_ms is not None:
        advice = "raise index.latency_ms"
    else:
        advice = "choose a larger index (index.factory)"
    return f"{setting}, the most of all that was measured, so {advice}"
