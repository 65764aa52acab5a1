"""The benchmark's part of the docs: the chart, and the tables between a page's markers."""

from __future__ import annotations

import re
from typing import Any

from core_bench.bars import Bar, draw
from core_bench.contenders import CONTENDERS
from core_bench.tables import Table, as_markdown, from_json
from core_bench.timing import BARE

CHARTED = {
    "calls/sync/closed/decorator": "What the decorator adds to a call that answers",
    "calls/async/closed/decorator": "The same on an event loop",
    "calls/sync/rejected/decorator": "What a refused call costs",
}

_OURS = {contender.name for contender in CONTENDERS if contender.is_ours}
_MARKED = re.compile(r"(<!-- figures: (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def chart(tables: list[Table]) -> str:
    """The bars of those questions of the chart that were asked."""
    found = {table.name: table for table in tables}
    return draw([(title, _bars(found[name])) for name, title in CHARTED.items() if name in found], "ns")


def fill(page: str, run: dict[str, Any]) -> str:
    """Puts the figures between ``<!-- figures: NAME -->`` and ``<!-- end -->``; ``run`` is what made them.

    A name that the run does not have keeps what stands there.
    """
    shown = {table.name: as_markdown(table) for table in from_json(run["tables"])}
    shown["run"] = _said(run)

    def filled(marked: re.Match[str]) -> str:
        opening, name, closing = marked.groups()
        return f"{opening}\n{shown[name]}\n{closing}" if name in shown else marked.group()

    return _MARKED.sub(filled, page)


def marked(page: str) -> list[str]:
    """The names of the figures that a page shows."""
    return [name for _, name, _ in _MARKED.findall(page)]


def _bars(table: Table) -> list[Bar]:
    return [
        Bar(name, row["over_bare"] or 0.0, name in _OURS) for name, row in table.rows.items() if name != BARE
    ]


def _said(run: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    words = "A quick look" if run["quick"] else "The full run"
    made = run["machine"]
    return f"{words} on {made['python']}, {made['system']}, {made['cpus']} processors. {versions}.\n"
