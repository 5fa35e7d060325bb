"""Pictures of an index and of an evaluation as PNG, for light and for dark pages.

Drawn without pyplot, so nothing global is touched and no display is needed.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from dpr.evaluate.significance import Interval

INCHES = (8.0, 4.4)
DOTS_PER_INCH = 144
LABEL_SHARE = 0.045
"""Height of a label, as a share of that of the picture's axes."""
MARKED_RANKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Markers of lines that would otherwise look alike."""


@dataclass(frozen=True)
class Theme:
    """Colours of a picture."""

    paper: str
    ink: str
    faint: str
    series: str
    chosen: str
    third: str


THEMES = {
    "light": Theme(
        paper="#ffffff", ink="#1f2328", faint="#d5d9de", series="#3b6fb6", chosen="#c2410c", third="#5b8c5a"
    ),
    "dark": Theme(paper="#161b22", ink="#e6edf3", faint="#363d47", series="#79a8e8", chosen="#f59e5b", third="#8fc98d"),
}


@dataclass(frozen=True)
class SearchPoint:
    """Settings of a search, their recall and their cost."""

    nprobe: int
    rescore: int
    recall: float
    """Recall@20."""
    predicted_ms: float
    measured_ms: float | None
    """Median of one question on one thread of this machine; None where it was not measured."""
    chosen: bool


@dataclass(frozen=True)
class KindMemory:
    """The memory that an index of some kind would take for the same vectors."""

    kind: str
    bytes_per_vector: float
    chosen: bool


@dataclass(frozen=True)
class Line:
    """A figure of several snapshots."""

    name: str
    values: Sequence[float | None]
    """None: it was not measured."""


def draw_nights(title: str, snapshots: Sequence[int], lines: Sequence[Line], theme: Theme) -> bytes:
    """Draw figures by snapshot, a line each."""

    def draw(axes: Axes) -> None:
        ends = []
        for line, shade in zip(lines, np.linspace(0.4, 1.0, len(lines)), strict=True):
            points = [(x, y) for x, y in zip(snapshots, line.values, strict=True) if y is not None]
            x, y = [x for x, _ in points], [y for _, y in points]
            axes.plot(x, y, "o-", color=theme.series, alpha=shade, lw=1.4, ms=3.5, zorder=2)
            ends += [(y[-1], x[-1], line.name)] if points else []
        low, high = axes.get_ylim()
        ends.sort(reverse=True)
        heights = labels_apart([y for y, _, _ in ends], LABEL_SHARE * (high - low))
        for height, (_, x_last, name) in zip(heights, ends, strict=True):
            place = {"textcoords": "offset points", "va": "center", "annotation_clip": False}
            axes.annotate(name, (x_last, height), (6, 0), fontsize=8, **place)
        ticks = MaxNLocator(integer=True).tick_values(snapshots[0], snapshots[-1])
        axes.set_xticks([tick for tick in ticks if snapshots[0] <= tick <= snapshots[-1]])
        axes.margins(x=0.12)
        axes.set_xlabel("snapshot")

    return _picture(title, draw, theme)


def labels_apart(ends: Sequence[float], gap: float) -> list[float]:
    """Return heights for the labels of lines that end at these heights, descending, so that none covers another."""
    heights: list[float] = []
    for end in ends:
        heights.append(min(end, heights[-1] - gap) if heights else end)
    return heights


@dataclass(frozen=True)
class AccuracyLine:
    """The share of questions that one search answers within each rank."""

    name: str
    ks: Sequence[int]
    intervals: Sequence[Interval]


def draw_recall(points: Sequence[SearchPoint], target: float, theme: Theme) -> bytes:
    """Draw recall against latency, one line for each number of candidates, with the chosen point and the target."""

    def draw(axes: Axes) -> None:
        rescores = sorted({point.rescore for point in points})
        shades = np.linspace(0.35, 1.0, len(rescores))
        for rescore, shade in zip(rescores, shades, strict=True):
            line = sorted((p for p in points if p.rescore == rescore), key=lambda p: p.predicted_ms)
            x, y = [p.predicted_ms for p in line], [p.recall for p in line]
            axes.plot(x, y, "o-", color=theme.series, alpha=shade, lw=1.4, ms=3.5, zorder=2)
            axes.annotate(f"{rescore}", (x[-1], y[-1]), (4, 0), textcoords="offset points", va="center", fontsize=8)
        measured = [(p.measured_ms, p.recall) for p in points if p.measured_ms is not None]
        if measured:
            x, y = [ms for ms, _ in measured], [recall for _, recall in measured]
            axes.plot(x, y, "x", color=theme.ink, ms=6, zorder=3, label="measured here")
        for point in (p for p in points if p.chosen):
            at = (point.predicted_ms, point.recall)
            label = f"chosen: nprobe {point.nprobe}, rescore {point.rescore}"
            axes.plot(*at, "o", color=theme.chosen, ms=10, zorder=4, label=label)
        axes.axhline(target, color=theme.chosen, lw=1, ls="--", zorder=1, label=f"recall_target {target:g}")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("milliseconds for one question on one thread; lines: predicted, by candidates re-scored")
        axes.set_ylabel("recall@20")
        axes.legend(loc="lower right", fontsize=8)

    return _picture("Recall against latency", draw, theme)


def draw_lists(sizes_L: npt.NDArray[np.int64], theme: Theme) -> bytes:
    """Draw a histogram of the sizes (L,) of inverted lists."""

    def draw(axes: Axes) -> None:
        bins = min(40, int(sizes_L.max(initial=0)) + 1)
        axes.hist(sizes_L, bins=bins, color=theme.series)
        mean = float(sizes_L.mean())
        axes.axvline(mean, color=theme.chosen, lw=1.4, ls="--", label=f"mean {mean:,.1f}")
        axes.set_xlabel(f"vectors in a list ({len(sizes_L):,} lists, largest {sizes_L.max():,})")
        axes.set_ylabel("lists")
        axes.legend(loc="upper right", fontsize=8)

    return _picture("Sizes of the inverted lists", draw, theme)


def draw_memory(kinds: Sequence[KindMemory], theme: Theme) -> bytes:
    """Draw the bytes per vector of several kinds of index, the chosen one marked."""

    def draw(axes: Axes) -> None:
        ordered = sorted(kinds, key=lambda kind: -kind.bytes_per_vector)
        colours = [theme.chosen if kind.chosen else theme.series for kind in ordered]
        widths = [kind.bytes_per_vector for kind in ordered]
        names = [f"{kind.kind} (this index)" if kind.chosen else kind.kind for kind in ordered]
        bars = axes.barh(range(len(ordered)), widths, color=colours, height=0.65)
        axes.bar_label(bars, [f"{width:,.0f}" for width in widths], padding=4, fontsize=8, color=theme.ink)
        axes.set_yticks(range(len(ordered)), names, fontsize=8)
        axes.set_xlim(right=1.1 * max(widths))
        axes.set_xlabel("bytes a vector: code, id, and its share of centroids and links")
        axes.grid(visible=False, axis="y")

    return _picture("Memory by kind", draw, theme)


def draw_accuracy(lines: Sequence[AccuracyLine], theme: Theme) -> bytes:
    """Draw accuracy against k, a line with its 95% interval for each search."""

    def draw(axes: Axes) -> None:
        colours, dashes = (theme.series, theme.third, theme.chosen), ("--", ":", "-")
        for number, line in enumerate(lines):
            colour, style = colours[number % len(colours)], dashes[number % len(dashes)]
            low, high = ([getattr(each, end) for each in line.intervals] for end in ("low", "high"))
            axes.fill_between(line.ks, low, high, color=colour, alpha=0.1, lw=0, zorder=1)
            for edge in (low, high):  # where bands overlap, their colours do not show which line each belongs to
                axes.plot(line.ks, edge, style, color=colour, lw=0.6, alpha=0.7, zorder=1)
            means, marked = [each.mean for each in line.intervals], [k in MARKED_RANKS for k in line.ks]
            marker = "o" if number >= len(colours) else ""
            axes.plot(
                line.ks, means, style, color=colour, lw=1.8, marker=marker, ms=4, markevery=marked, label=line.name
            )
        axes.set_xscale("log")
        axes.set_xlim(1, max(2, lines[0].ks[-1]))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("k, the number of hits considered")
        axes.set_ylabel("share of questions answered")
        axes.legend(loc="lower right", fontsize=8)

    return _picture("Accuracy against k", draw, theme)


def _picture(title: str, draw: Callable[[Axes], None], theme: Theme) -> bytes:
    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, facecolor=theme.paper)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
    axes = figure.add_subplot(facecolor=theme.paper)
    axes.set_axisbelow(True)
    axes.grid(visible=True, color=theme.faint, lw=0.6)
    draw(axes)
    axes.set_title(title, loc="left", color=theme.ink, fontsize=12, fontweight="bold")
    axes.tick_params(which="both", colors=theme.ink, labelsize=8)
    for text in (axes.xaxis.label, axes.yaxis.label, *axes.texts):
        text.set_color(theme.ink)
        text.set_fontsize(9 if text in (axes.xaxis.label, axes.yaxis.label) else 8)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.faint)
    if (legend := axes.get_legend()) is not None:
        legend.get_frame().set(facecolor=theme.paper, edgecolor=theme.faint)
        for text in legend.get_texts():
            text.set_color(theme.ink)
    target = io.BytesIO()
    figure.savefig(target, format="png", facecolor=theme.paper)
    return target.getvalue()
