"""The benchmark of fleets runs and prints its ratio; the figures are in docs/internals/proof.md."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent


@pytest.mark.slow
def test_a_fleet_serves_more_than_a_static_division():
    """Turns of six seconds, of which a fleet needs two or three to follow."""
    command = [sys.executable, HERE / "bench_fleet_goodput.py", "--turn", "6", "--rounds", "0.5"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=110)
    ratio = float(done.stdout.rpartition("ratio:")[2])
    assert ratio > 1.2, done.stdout
