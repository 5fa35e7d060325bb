"""The sentence that tells a user how the index is searched, and why."""

from dpr.index.tune import Tuned
from dpr.recipe_index import IndexConfig

CHEAPER_TIMES, LESS_RECALL = 4, 0.01
"""The sentence names cheaper settings if they are at least this many times as fast, and their recall is at most this
much lower."""


def describe(tuned: Tuned, config: IndexConfig) -> str:
    """Return the choice in one sentence: its recall and time, any missed target, and why no more was tried."""
    average = " on average" if tuned.settings.margin is not None else ""
    settings = f"nprobe {tuned.settings.nprobe}{average} and rescore {tuned.settings.rescore}"
    how = "a measured" if tuned.timed else "a predicted"
    found = f"recall@{tuned.settings.at} {tuned.recall:.4f} at {how} {tuned.predicted_ms:.3g} ms"
    if not tuned.meets_latency:
        choice = f"{settings} are the cheapest, {found}, and still above latency_ms {config.latency_ms:g}"
    elif tuned.meets_target:
        choice = f"{settings} are the cheapest that reach recall_target {config.recall_target:g}: {found}"
    else:
        within = "" if config.latency_ms is None else f" within latency_ms {config.latency_ms:g}"
        choice = f"{settings} give the best recall{within}, {found}, and miss recall_target {config.recall_target:g}"
    measured = f"{len(tuned.curve)} settings were measured, and no more because {tuned.stop.value}"
    return "; ".join([choice, *_describe_cheaper(tuned), measured])


def _describe_cheaper(tuned: Tuned) -> list[str]:
    """Return a sentence on settings that are much cheaper for a little recall; none if there are none."""
    enough = [point for point in tuned.curve if point.recall >= tuned.recall - LESS_RECALL]
    cheaper = min(enough, key=lambda point: point.predicted_ms, default=None)
    if cheaper is None or CHEAPER_TIMES * cheaper.predicted_ms > tuned.predicted_ms:
        return []
    return [f"recall {cheaper.recall:.4f} would take {cheaper.predicted_ms:.3g} ms (set recall_target or latency_ms)"]
