"""A bar chart as SVG, by hand: names and figures in, markup out. It is readable in light and in dark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _NAMES, _FIGURES = 720, 190, 80
_BAR, _STEP, _HEAD, _GAP = 14, 20, 30, 14
_STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600 }
.figure { fill: #57606a }
rect { fill: #a8b3bf } .ours { fill: #1f7a4d }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .figure { fill: #9da7b1 } rect { fill: #57606a } .ours { fill: #3fb97b }
}
</style>"""


@dataclass(frozen=True, slots=True)
class Bar:
    """One figure; ``ours`` sets it off."""

    name: str
    value: float
    ours: bool


def draw(groups: Sequence[tuple[str, Sequence[Bar]]], unit: str) -> str:
    """Groups of bars below each other, all to one scale from zero."""
    most = max((bar.value for _, bars in groups for bar in bars), default=1.0)
    parts: list[str] = []
    y = 0
    for title, bars in groups:
        parts.append(f'<text class="title" x="0" y="{y + 18}">{escape(title)}</text>')
        y += _HEAD
        for bar in bars:
            parts.append(_bar(bar, y, most, unit))
            y += _STEP
        y += _GAP
    label = escape("; ".join(title for title, _ in groups))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" role="img" aria-label="{label}">'
    )
    return "\n".join([head, _STYLE, *parts, "</svg>", ""])


def _bar(bar: Bar, y: int, most: float, unit: str) -> str:
    length = (_WIDTH - _NAMES - _FIGURES) * max(bar.value, 0.0) / most
    figure = f"{bar.value:,.0f} {unit}"
    colour = ' class="ours"' if bar.ours else ""
    return (
        f'<text x="{_NAMES - 8}" y="{y + 11}" text-anchor="end">{escape(bar.name)}</text>'
        f'<rect{colour} x="{_NAMES}" y="{y}" width="{length:.1f}" height="{_BAR}"/>'
        f'<text class="figure" x="{_NAMES + length + 6:.1f}" y="{y + 11}">{escape(figure)}</text>'
    )
