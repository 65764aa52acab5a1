"""Checks that no other distribution has installed files in this package. Depends on nothing.

The distribution guardrails-ai installs a package of the same name. If both are installed, each overwrites
files of the other, and the errors that follow come late and elsewhere.
"""

from __future__ import annotations

import os

__all__ = ["check"]

_FOREIGN = ("guard.py", "hub", "validator_base.py")


def check(directory: str | os.PathLike[str]) -> None:
    """Raises ImportError if ``directory`` holds files of guardrails-ai."""
    if not set(os.listdir(directory)).isdisjoint(_FOREIGN):  # noqa: PTH208 - importing pathlib takes too long
        raise ImportError(
            "guardrails-db and guardrails-ai both install a package named 'guardrails' and have overwritten "
            "each other's files: pip uninstall guardrails-ai guardrails-db, then install the one you want"
        )


check(os.path.dirname(__file__))  # noqa: PTH120 - likewise
