"""Makes sure that this package is alone in its directory. Knows file names, imports nothing of ours.

Another distribution, guardrails-ai, installs a package of the same name. With both in one environment
each overwrites files of the other, and what comes of it fails late and far away.
"""

from __future__ import annotations

import os

__all__ = ["check"]

_FOREIGN = ("guard.py", "hub", "validator_base.py")


def check(directory: str | os.PathLike[str]) -> None:
    """Raises ImportError if another distribution's files lie in ``directory``."""
    if not set(os.listdir(directory)).isdisjoint(_FOREIGN):  # noqa: PTH208 - pathlib takes longer than all else
        raise ImportError(
            "guardrails-db and guardrails-ai both install a package named 'guardrails' and have overwritten "
            "each other's files: pip uninstall guardrails-ai guardrails-db, then install the one you want"
        )


check(os.path.dirname(__file__))  # noqa: PTH120 - likewise
