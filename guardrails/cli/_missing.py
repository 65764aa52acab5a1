"""The message of a command for a missing package. Depends on the standard library alone."""

from __future__ import annotations

import sys
from typing import NoReturn

__all__ = ["missing"]


def missing(extra: str) -> NoReturn:
    """Names the extra to install and exits with 2."""
    print(f"guardrails: this needs: pip install 'guardrails-db[{extra}]'", file=sys.stderr)
    sys.exit(2)
