"""The figures of the tables of peers, in the README and in why, are those of the published benchmark."""

from __future__ import annotations

import json

import pytest

from support.paths import DOCS, ROOT

TABLES = {
    table["name"]: table["rows"]
    for table in json.loads((DOCS / "internals" / "benchmarks.json").read_text())["tables"]
}
CONTENDERS = ["Guard", "pybreaker", "interlock-cb", "nopanic", "pyresilience"]
"""What a column of the tables stands for, from the left."""


def cells(page, row):
    """The cells of a row of a page's table, but for its name and for the last column, which is no library."""
    line = next(line for line in page.read_text().splitlines() if line.startswith(f"| {row} |"))
    return [cell.strip() for cell in line.split("|")[2:7]]


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "why.md"], ids=lambda page: page.name)
def test_what_a_call_costs_is_what_was_measured(page):
    """Microseconds over the bare call, with one decimal."""
    rows = TABLES["calls/sync/closed/decorator"]
    measured = [f"{rows[name]['over_bare'] / 1000:.1f} us" for name in CONTENDERS]
    assert cells(page, "adds to a call, decorator alone") == measured


def test_what_eight_threads_take_is_what_was_measured():
    """Milliseconds for all of them together."""
    rows = TABLES["parallel/8 threads x 50 ms"]
    measured = [f"{rows[name]['ms']:.0f} ms" for name in CONTENDERS]
    assert cells(DOCS / "why.md", "8 threads of 50 ms through one breaker") == measured
