"""Writes the report of a run as one self-contained HTML page: numbers, four charts, notes.

Depends on `guardrails.demo.figures` for the sums and on `guardrails.demo.charts` for the lines.
"""

from __future__ import annotations

import functools
from html import escape
from typing import TYPE_CHECKING, Any

from guardrails.demo.charts import Chart, Line, draw
from guardrails.demo.page import STYLE
from guardrails.demo.percentiles import percentile
from guardrails.demo.scenarios import BYSTANDER, POOL_CAPACITY, SCENARIOS
from guardrails.demo.terminal import scorecard
from guardrails.demo.twin import difference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from guardrails.demo.records import Run, Transition, Try, Twin

__all__ = ["page"]


def page(run: Run, figures: dict[str, Any], watched: Sequence[str] = ()) -> str:
    """Returns the page.

    Args:
        run: The records, for the charts.
        figures: The result of `guardrails.demo.figures.figures`.
        watched: Lines that say what guards in shadow would have done.
    """
    scenario = SCENARIOS[run.scenario]
    parts = [
        f"<h1>{escape(_sentence(scenario.title))}</h1>",
        _warning(figures),
        _lead(scenario.caption, figures),
        _headline(figures),
        _cause(run),
        _watched(watched),
        _charts(run),
        f"<div class=columns><div>{_table(figures)}</div>",
        f"<div>{_difference(run.compartments)}{_timeline(run)}</div></div>",
        _notes(run),
        _origin(figures["origin"]),
    ]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>guardrails demo: {escape(scenario.title)}</title>\n<style>{STYLE}</style>\n"
        f"</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _warning(figures: dict[str, Any]) -> str:
    why = figures["check"]["disturbed_by"]
    return (
        f"<p class=warning><b>These figures are not valid:</b> {escape('; '.join(why))}.</p>" if why else ""
    )


def _watched(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    return f"<h2>What enforcing would have done</h2>\n<pre>{escape(chr(10).join(lines))}</pre>"


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


def _lead(caption: str, figures: dict[str, Any]) -> str:
    return (
        f"<p class=lead>{escape(caption)} One app, run twice at the same time on the same database with the"
        f" same users: {figures['offered_per_s']:g} a second for {figures['seconds']} s.</p>"
    )


_USUAL_CARDS = {
    "users served: after the fault": "users served after the fault",
    "good again after the fault": "good again after",
    "other table served in the fault": "other table served during the fault",
}

_CARDS = {
    "redis-freeze": {
        "answer during the fault, p99": "slowest of 100 answers during the fault",
        "seconds without a good answer": "seconds without a good answer",
        "users served: during the fault": "users served during the fault",
    }
}
"""The figures that differ in a scenario in which both apps serve all users in the end."""


def _headline(figures: dict[str, Any]) -> str:
    """Returns the three most important numbers of the scenario, plain against guarded."""
    wanted = _CARDS.get(figures["scenario"], _USUAL_CARDS)
    rows = {what: (plain, guarded) for what, plain, guarded in scorecard(figures)}
    cards = [
        f"<div class=card><div class=what>{name}</div>"
        f"<div class=pair><div><b class=plain>{rows[what][0]}</b><span>plain</span></div>"
        f"<div><b class=guarded>{rows[what][1]}</b><span>guarded</span></div></div></div>"
        for what, name in wanted.items()
    ]
    return f"<section class=cards>{''.join(cards)}</section>"


def _table(figures: dict[str, Any]) -> str:
    rows = [
        f"<tr><th scope=row>{escape(what)}</th><td>{plain}</td><td>{guarded}</td></tr>"
        for what, plain, guarded in scorecard(figures)
    ]
    head = "<tr><td></td><th scope=col class=plain>plain</th><th scope=col class=guarded>guarded</th></tr>"
    return f"<h2>Scorecard</h2><table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def _charts(run: Run) -> str:
    end = float(run.seconds)
    chart = functools.partial(Chart, seconds=end, shaded=(run.fault_starts, run.fault_ends))
    goodput = [Line(twin.name, _by_second(twin.tries, end, _good)) for twin in run.twins]
    latency = [
        Line(f"{twin.name} {name}", _by_second(twin.tries, end, read))
        for twin in run.twins
        for name, read in (("tail", _slowest), ("middle", _median))
    ]
    pool = [Line(twin.name, _connections(twin, end)) for twin in run.twins]
    other = [Line(twin.name, _by_second(_tries_at(twin, BYSTANDER), end, _good)) for twin in run.twins]
    figures = [
        _figure(
            "Good answers per second",
            "",
            chart(name="good answers per second over time", lines=goodput, label=_count),
        ),
        _figure(
            "Time to an answer",
            "p50 solid, p99 dotted, of all answers and time-outs",
            chart(name="latency over time", lines=latency, label=_duration, floor=0.001),
        ),
        _figure(
            "Other table: good answers per second",
            "through the same pool",
            chart(name="good answers of the other table per second over time", lines=other, label=_count),
        ),
        _figure(
            "Using or awaiting a connection",
            f"the pool holds {POOL_CAPACITY} (thin line)",
            chart(name="pool use over time", lines=pool, label=_count, floor=1.0, rule=POOL_CAPACITY),
        ),
    ]
    legend = "<p class=legend><i class=plain></i> plain <i class=guarded></i> guarded</p>"
    return f"{legend}<section class=charts>{''.join(figures)}</section>"


def _figure(title: str, hint: str, chart: Chart) -> str:
    return f"<figure><figcaption>{title}<small>{hint}</small></figcaption>{draw(chart)}</figure>"


def _connections(twin: Twin, end: float) -> list[tuple[float, float]]:
    return [(look.at, float(look.checked_out + look.waiting)) for look in twin.looks if look.at <= end]


def _by_second(
    counted: Iterable[Try], end: float, read: Callable[[list[Try]], float | None]
) -> list[tuple[float, float | None]]:
    seconds: list[list[Try]] = [[] for _ in range(int(end))]
    for one in counted:
        if 0 <= one.ended_at < len(seconds):
            seconds[int(one.ended_at)].append(one)
    return [(second + 0.5, read(tries)) for second, tries in enumerate(seconds)]


def _tries_at(twin: Twin, path: str) -> Iterable[Try]:
    return (one for user in twin.users if user.arrival.path == path for one in user.tries)


def _good(tries: list[Try]) -> float:
    return float(sum(one.answer == "ok" for one in tries))


def _median(tries: list[Try]) -> float | None:
    return percentile([one.seconds for one in tries], 0.50)


def _slowest(tries: list[Try]) -> float | None:
    return percentile([one.seconds for one in tries], 0.99)


def _count(value: float) -> str:
    return f"{value:g}"


def _duration(seconds: float) -> str:
    return f"{seconds:g} s" if seconds >= 1.0 else f"{seconds * 1000:g} ms"


def _cause(run: Run) -> str:
    """Returns what the guarded app knew: the cause, and its pool when that was worst."""
    cause, pool = run.guarded.cause, run.guarded.pool
    parts = ["<h2>What the guarded app reported</h2>"] if cause or pool else []
    if cause:
        parts.append(f"<p class=warning><b>The cause:</b> {escape(cause)}</p>")
    if pool:
        parts.append(
            f"<p>Its pool at its worst, after {pool.at:.0f} s:</p>"
            f"<pre class=wrapped>{escape(pool.words)}</pre>"
        )
    return "".join(parts)


def _difference(compartments: str) -> str:
    lines = [
        f"<ins>+ {escape(line)}</ins>" if added else f"  {escape(line)}"
        for added, line in difference(compartments)
    ]
    return f"<h2>All that differs</h2><pre><code>{chr(10).join(lines)}</code></pre>"


def _timeline(run: Run) -> str:
    head = "<h2>What the guards did</h2>"
    changes = [change for change in run.guarded.changes if change.at >= 0.0]
    if not changes:
        return f"{head}<p>No circuit changed its state.</p>"
    items = "".join(f"<li>{_transition_text(change)}</li>" for change in changes)
    return f"{head}<ol class=timeline>{items}</ol>"


def _transition_text(change: Transition) -> str:
    new = f'<b class="{escape(change.new)}">{escape(change.new.replace("_", "-"))}</b>'
    old = escape(change.old.replace("_", "-"))
    return f"<time>{change.at:.2f} s</time> {escape(change.guard)}: {old} → {new}"


def _origin(origin: dict[str, Any]) -> str:
    if not origin:
        return ""
    libraries = ", ".join(f"{name} {version}" for name, version in origin["libraries"].items())
    machine = origin["machine"]
    rows = {
        "command": f"<code>{escape(origin['command'])}</code>",
        "guardrails-db": escape(origin["guardrails"]),
        "Python": escape(origin["python"]),
        "with": escape(libraries),
        "machine": escape(f"{machine['cores']} cores, {machine['system']}"),
    }
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows.items())
    return f"<h2>Origin of the figures</h2><dl>{items}</dl>"


def _notes(run: Run) -> str:
    return (
        "<h2>How it was measured</h2><p>Users arrive at random and do not wait for each other."
        " Each waits 2 s for an answer and tries up to three times more, after a refusal at the time that"
        " it names."
        " Latency counts from the moment a request should have been sent. A user counts to the phase"
        " of the arrival; a try counts, in the charts, to the second in which it ended. The fault lasted"
        f" from {run.fault_starts:.2f} s to {run.fault_ends:.2f} s. Both apps ran under uvicorn with"
        f" SQLAlchemy's default pool, 5 + 10 connections. Seed {run.seed}.</p>"
    )
