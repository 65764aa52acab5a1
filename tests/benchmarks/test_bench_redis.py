"""The benchmark of the Redis integration runs, and gives a figure for everything it says it measures."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent


@pytest.mark.slow
def test_every_row_has_its_figures(tmp_path):
    """A run as small as can be: bare and protected, sync and asyncio, one command and a pipeline."""
    written = tmp_path / "rows.json"
    command = [sys.executable, HERE / "bench_redis.py", "--rounds", "2", "--turns", "10", "--json", written]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
    rows = {row["what"]: row for row in json.loads(written.read_text())}
    for flavour in ("sync", "async"):
        for work in ("GET", "GET in a deadline", "pipeline of 100"):
            row = rows.pop(f"{flavour} {work}")
            assert row["bare_us"] > 0
            assert row["protected_us"] > 0
            assert row["ratio"] > 0
            assert row["cpu_ratio"] > 0
            assert f"{row['ratio']:7.3f}" in done.stdout
    assert not rows
