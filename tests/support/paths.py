"""Where things are, for tests wherever they are themselves."""

from __future__ import annotations

import os
import pathlib

import guardrails

SUPPORT = pathlib.Path(__file__).parent
TESTS = SUPPORT.parent
ROOT = TESTS.parent
DOCS = ROOT / "docs"
EXAMPLES = ROOT / "examples"
PACKAGE = pathlib.Path(guardrails.__file__).parent
APPS = SUPPORT / "apps"
"""Applications for servers that tests start; a server's current folder."""
PROCESSES = SUPPORT / "processes"
"""Scripts that run in a Python of their own."""


def python_path(*more):
    """A PYTHONPATH on which a child process finds the package and this one, besides what was there."""
    return os.pathsep.join(
        filter(None, [*map(str, more), str(ROOT), str(TESTS), os.environ.get("PYTHONPATH")])
    )
