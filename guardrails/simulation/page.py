"""Writes the results of a simulation as one HTML page. Depends on the demo's charts and style."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from guardrails.demo.charts import Chart, Line, draw
from guardrails.demo.page import STYLE
from guardrails.simulation.fleet_run import FleetRun
from guardrails.simulation.replay_sums import Replay
from guardrails.simulation.trace import Trace

__all__ = ["fleet_page", "replay_page"]

_COLOURS = 6
"""Colours for the policies; the seventh has that of the first again."""

_STYLE = """
:root { --c0: #0e7490; --c1: #c2410c; --c2: #6d28d9; --c3: #15803d; --c4: #b91c8c; --c5: #854d0e; }
@media (prefers-color-scheme: dark) { :root { --c0: #22d3ee; --c1: #fb923c; --c2: #a78bfa; --c3: #4ade80;
  --c4: #f472b6; --c5: #facc15; } }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); }
.c3 { color: var(--c3); } .c4 { color: var(--c4); } .c5 { color: var(--c5); }
svg { overflow: visible; }
.legend span { margin-right: 16px; white-space: nowrap; }
"""


def replay_page(trace: Trace, replays: Sequence[Replay], lines: Iterable[str]) -> str:
    """Returns the page of a replay.

    Args:
        trace: The trace.
        replays: The results, one for each policy.
        lines: The tables as the command prints them.
    """
    seconds = max(1.0, trace.seconds)
    names = [each.policy.label for each in replays]

    def chart(title: str, columns: Sequence[Sequence[float]], rule: float | None = None) -> str:
        drawn = [
            Line(_colour(place), [((at + 0.5) * replays[0].slice, value) for at, value in enumerate(column)])
            for place, column in enumerate(columns)
        ]
        return _figure(title, Chart(name=title, lines=drawn, seconds=seconds, label=_number, rule=rule))

    figures = [
        chart("Refused calls per second", [[many / each.slice for many in each.refused] for each in replays]),
        chart(
            "Admitted calls per second", [[many / each.slice for many in each.admitted] for each in replays]
        ),
        chart("Most slots in use", [each.in_use for each in replays]),
    ]
    return _page("What the guard would have done", _legend(names), figures, lines)


def fleet_page(run: FleetRun, lines: Iterable[str]) -> str:
    """Returns the page of a simulated fleet.

    Args:
        run: The results.
        lines: The results as the command prints them.
    """
    samples, seconds = run.sums.samples, run.plan.hours * 3600

    def chart(title: str, *columns: str, rule: float | None = None) -> str:
        drawn = [
            Line(_colour(place), [(each.at, float(getattr(each, column))) for each in samples])
            for place, column in enumerate(columns)
        ]
        return _figure(title, Chart(name=title, lines=drawn, seconds=seconds, label=_number, rule=rule))

    figures = [
        chart("Open connections; the thin line is the budget", "open", rule=float(run.plan.budget)),
        chart("Calls under way", "served", "static", "demand"),
        chart("Commands per second at the store", "commands"),
        chart("Workers", "workers"),
    ]
    legend = _legend(["with the fleet", "with the budget divided once", "wanted"])
    return _page("A fleet in virtual time", legend, figures, lines)


def _page(title: str, legend: str, figures: Iterable[str], lines: Iterable[str]) -> str:
    text = escape("\n".join(lines))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>guardrails simulate: {escape(title)}</title>\n<style>{STYLE}{_STYLE}</style>\n"
        f"</head>\n<body>\n<main>\n<h1>{escape(title)}</h1>\n{legend}\n"
        f"<section class=charts>{''.join(figures)}</section>\n<h2>Figures</h2>\n<pre>{text}</pre>\n"
        "</main>\n</body>\n</html>\n"
    )


def _legend(names: Sequence[str]) -> str:
    items = (
        f'<span><i class="{_colour(place)}"></i>{escape(name)}</span>' for place, name in enumerate(names)
    )
    return f"<p class=legend>{''.join(items)}</p>"


def _colour(place: int) -> str:
    return f"c{place % _COLOURS}"


def _figure(title: str, chart: Chart) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{draw(chart)}</figure>"


def _number(value: float) -> str:
    return f"{value:g}"
