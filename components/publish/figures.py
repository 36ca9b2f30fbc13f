"""The report's figures as inline SVG: equal input gives equal bytes, and the page's own colours apply (dark mode too).

Matplotlib draws in marker colours, which are then replaced by the page's CSS variables.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, LINE, ACCENT, GOOD, BAD = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", ACCENT: "accent", GOOD: "good", BAD: "bad"}
STYLE = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "text.color": INK,
    "text.parse_math": False,
}
SMOOTH_FROM = 30  # points; below that the raw line is readable


def curve(name: str, rows: Sequence[Mapping[str, Any]], key: str, share: bool = False) -> str:
    """Return a metric over the training steps, "" if no row has it; many points get a running mean drawn over them."""
    points = [(row["step"], row[key]) for row in rows if _is_number(row.get(key)) and _is_number(row.get("step"))]
    if not points:
        return ""
    steps, values = [step for step, _ in points], [value for _, value in points]
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure, axes = _axes(4.6, 2.5)
        many = len(points) >= SMOOTH_FROM
        marker = "o" if len(points) < 3 else None
        axes.plot(steps, values, color=ACCENT, linewidth=1.0 if many else 1.6, alpha=0.35 if many else 1, marker=marker)
        if many:
            axes.plot(steps, _running_mean(values, max(3, len(values) // 12)), color=ACCENT, linewidth=1.8)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        if share:
            axes.set_ylim(-0.03, 1.03)
            axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1))
        return _svg(figure, f"{name} over {len(points)} steps, from {values[0]:.3g} to {values[-1]:.3g}")


def accuracies(scores: Sequence[tuple[str, float, float, float]], threshold: float) -> str:
    """Return each model's accuracy (label, value, low, high) with its interval, against the gate's threshold."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "accuracy"}):
        figure, axes = _axes(7.2, 0.75 + 0.42 * len(scores))
        places = list(range(len(scores)))[::-1]
        for place, (_, value, low, high) in zip(places, scores, strict=True):
            axes.plot([low, high], [place, place], color=ACCENT, linewidth=2, solid_capstyle="round")
            axes.plot([value], [place], color=ACCENT, marker="o", markersize=7)
            axes.annotate(
                f"{100 * value:.1f}%", (value, place), (0, 7), textcoords="offset points", ha="center", size=9
            )
        axes.axvline(threshold, color=BAD, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.set_yticks(places, [label for label, *_ in scores], color=INK)
        axes.set_ylim(-0.6, len(scores) - 0.3)
        axes.set_xlim(0, 1.02)
        axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1))
        axes.grid(visible=False, axis="y")
        spoken = "; ".join(f"{label} {100 * value:.1f}%" for label, value, _, _ in scores)
        return _svg(figure, f"Accuracy with intervals: {spoken}; threshold {100 * threshold:.1f}%")


def falls(steps: Sequence[Mapping[str, Any]]) -> str:
    """Return the filter's waterfall: a bar for each step, what it kept and what it dropped."""
    if not steps:
        return ""
    names = [str(step.get("step", "")).encode("ascii", "replace").decode() for step in steps]
    kept = [float(step.get("kept") or 0) for step in steps]
    dropped = [float(step.get("dropped") or 0) for step in steps]
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "waterfall"}):
        figure, axes = _axes(7.2, 0.7 + 0.36 * len(steps))
        places = list(range(len(steps)))[::-1]
        axes.barh(places, kept, color=ACCENT, height=0.62)
        axes.barh(places, dropped, left=kept, color=BAD, height=0.62, alpha=0.45)
        for place, keeps, drops in zip(places, kept, dropped, strict=True):
            text = f"{keeps:.0f}  (-{drops:.0f})" if drops else f"{keeps:.0f}"
            axes.annotate(text, (keeps + drops, place), (5, 0), textcoords="offset points", va="center", size=9)
        axes.set_yticks(places, names, color=INK)
        axes.set_xlim(0, 1.16 * max(*(keeps + drops for keeps, drops in zip(kept, dropped, strict=True)), 1))
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        axes.grid(visible=False, axis="y")
        return _svg(figure, "; ".join(f"{name}: {keeps:.0f} kept" for name, keeps in zip(names, kept, strict=True)))


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes: Axes = figure.subplots()
    axes.tick_params(length=0)
    return figure, axes


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    """Return the mean over the points around each one; the window shrinks towards the ends, so the line has no lag."""
    means = []
    for place in range(len(values)):
        reach = min(width // 2, place, len(values) - 1 - place)
        window = values[place - reach : place + reach + 1]
        means.append(sum(window) / len(window))
    return means


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _svg(figure: Figure, spoken: str) -> str:
    """Return the figure as an <svg> element without fixed size, ids that could clash, fonts or global style."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    view = re.search(r'viewBox="([^"]+)"', text)
    assert view is not None  # noqa: S101 - Matplotlib always writes one
    body = text[text.index(">", view.end()) + 1 :]
    body = re.sub(r"<style[^>]*>.*?</style>|<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1", body)
    body = re.sub(r"(?m)^\s+|\s+$", "", body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    width, height = view.group(1).split()[2:]
    label = spoken.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    size = f'style="max-width:{float(width) * 4 / 3:.0f}px;aspect-ratio:{width}/{height}"'
    xlink = 'xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg viewBox="{view.group(1)}" {size} role="img" aria-label="{label}" {xlink}>{body}'
