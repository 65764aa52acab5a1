"""The page's table of cases names tests that are there."""

from __future__ import annotations

import re

from support.paths import DOCS, TESTS

PAGE = DOCS / "asgi.md"


def named():
    """The tests of the table, in its order."""
    table = PAGE.read_text().partition("\n## Cases\n")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert all("`test_" in row.rpartition(" | ")[2] for row in rows), "a case without a test"
    return [name for row in rows for name in re.findall(r"`(test_\w+)`", row)]


def test_every_case_has_its_tests():
    """A test that was renamed is renamed there too."""
    there = {
        name
        for path in TESTS.rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)\(", path.read_text())
    }
    assert len(named()) > 50
    assert [name for name in named() if name not in there] == []
