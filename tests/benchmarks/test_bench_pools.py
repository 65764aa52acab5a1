"""The benchmark of the drivers' pools runs, and gives a figure for everything it says it measures."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent


@pytest.mark.slow
def test_every_row_has_its_figures(tmp_path):
    """A run as small as can be: bare and protected, of each kind of pool."""
    written = tmp_path / "rows.json"
    command = [sys.executable, HERE / "bench_pools.py", "--rounds", "2", "--turns", "10", "--json", written]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
    rows = {row["what"]: row for row in json.loads(written.read_text())}
    for what in ("psycopg statement", "asyncpg statement", "asyncpg transaction", "psycopg async statement"):
        row = rows.pop(what)
        assert row["bare_us"] > 0
        assert row["protected_us"] > 0
        assert f"{row['ratio']:7.3f}" in done.stdout
    assert not rows
