"""The benchmark of fleets runs, and gives a figure for everything it says it measures."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent


@pytest.mark.slow
def test_every_size_has_its_figures(tmp_path):
    written = tmp_path / "rows.json"
    command = [
        sys.executable,
        HERE / "bench_fleet.py",
        "--workers",
        "5",
        "50",
        "--calls",
        "100",
        "--json",
        written,
    ]
    command += ["--connections", "8", "--seconds", "2"]
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, timeout=200)
    found = json.loads(written.read_text())
    assert [row["workers"] for row in found["fleets"]] == [5, 50]
    for row in found["fleets"]:
        assert all(row[name] > 0 for name in ("steady_us", "changing_us", "worst_us", "total_us"))
        assert f"{row['bytes_per_worker']}" in done.stdout
    assert (found["load"]["renewals"], found["load"]["errors"]) == (16, 0)
