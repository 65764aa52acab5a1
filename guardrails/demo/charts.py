"""Draws line charts over time as inline SVG.

Depends on nothing; must not know the figures' meaning or the page. The page sets the colours, by CSS class.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from math import ceil, log10
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Chart", "Line", "draw"]

_WIDTH, _HEIGHT = 400.0, 230.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 16.0, 10.0, 26.0
_STEPS = (1, 2, 5)
_TIMES = (1, 5, 10, 20, 60, 120, 300, 600, 1200, 3600, 7200, 14400, 43200)


@dataclass(frozen=True, slots=True)
class Line:
    """One line: CSS classes, and ``(seconds, value)`` points; a value of None is a gap."""

    classes: str
    points: Sequence[tuple[float, float | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One chart.

    Attributes:
        name: The label for screen readers.
        lines: Drawn in this order, the last on top.
        seconds: Right end of the time axis, which starts at 0.
        shaded: The window of the fault, in seconds; None without one.
        label: Formats a value at its tick.
        floor: Smallest value of a logarithmic axis; None for a linear one from 0.
        rule: A value to mark with a thin line across.
    """

    name: str
    lines: Sequence[Line]
    seconds: float
    label: Callable[[float], str]
    shaded: tuple[float, float] | None = None
    floor: float | None = None
    rule: float | None = None


def draw(chart: Chart) -> str:
    """Returns the chart as an ``<svg>`` element that scales with its box."""
    most = max((y for line in chart.lines for _, y in line.points if y is not None), default=1.0)
    ticks = _log_ticks(chart.floor, most) if chart.floor else _linear_ticks(most)
    to_y = _y_axis(ticks[-1], chart.floor)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" aria-label="{escape(chart.name)}">',
        _window(chart.shaded, chart),
        *(_y_tick(to_y(value), chart.label(value)) for value in ticks),
        *(_x_tick(_x(chart, second), second) for second in _time_ticks(chart.seconds)),
    ]
    if chart.rule is not None:
        at = to_y(chart.rule)
        parts.append(f'<line class="rule" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
    parts += [_path(chart, line, to_y) for line in chart.lines]
    return "\n".join([*parts, "</svg>"])


def _x(chart: Chart, second: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * min(max(second / chart.seconds, 0.0), 1.0)


def _y_axis(most: float, floor: float | None) -> Callable[[float], float]:
    height = _HEIGHT - _TOP - _BOTTOM

    def linear(value: float) -> float:
        return _TOP + height * (1.0 - value / most)

    def logarithmic(value: float) -> float:
        assert floor is not None  # noqa: S101 - chosen below
        share = log10(max(value, floor) / floor) / log10(most / floor)
        return _TOP + height * (1.0 - share)

    return linear if floor is None else logarithmic


def _log_ticks(floor: float, most: float) -> list[float]:
    decades = max(1, ceil(log10(max(most, floor * 10.0) / floor) - 1e-9))
    return [floor * 10.0**power for power in range(decades + 1)]


def _linear_ticks(most: float) -> list[float]:
    size = 10.0 ** (len(str(int(max(most, 1.0)))) - 1)
    step = next(
        (step * scale for scale in (size / 10.0, size) for step in _STEPS if most <= 5.0 * step * scale),
        size * 2.0,
    )
    return [step * index for index in range(max(1, ceil(most / step - 1e-9)) + 1)]


def _time_ticks(seconds: float) -> list[int]:
    step = next((step for step in _TIMES if seconds / step <= 7), int(seconds / 6))  # noqa: PLR2004
    return list(range(0, int(seconds) + 1, step))


def _window(shaded: tuple[float, float] | None, chart: Chart) -> str:
    if shaded is None:
        return ""
    left, right = (_x(chart, second) for second in shaded)
    height = _HEIGHT - _TOP - _BOTTOM
    return (
        f'<rect class="fault" x="{left:.1f}" y="{_TOP}" width="{right - left:.1f}" height="{height}"/>'
        f'<text class="fault-word" x="{(left + right) / 2:.1f}" y="{_TOP + 11}">fault</text>'
    )


def _y_tick(at: float, words: str) -> str:
    return (
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        f'<text class="y" x="{_LEFT - 6}" y="{at + 3.5:.1f}">{escape(words)}</text>'
    )


def _x_tick(at: float, second: int) -> str:
    return f'<text class="x" x="{at:.1f}" y="{_HEIGHT - 8}">{second} s</text>'


def _path(chart: Chart, line: Line, to_y: Callable[[float], float]) -> str:
    moves: list[str] = []
    pen_down = False
    for second, value in line.points:
        if value is not None:
            moves.append(f"{'L' if pen_down else 'M'}{_x(chart, second):.1f} {to_y(value):.1f}")
        pen_down = value is not None
    return f'<path class="{line.classes}" d="{"".join(moves)}"/>'
