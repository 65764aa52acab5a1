"""Guards SQLAlchemy engines: admission at the pool, evidence from every statement, deadlines that stop it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guardrails.integrations.sqlalchemy._engine import guard_engine

__all__ = ["guard_engine"]


def __getattr__(name: str) -> Any:
    # On use: Django's statements are stopped by what is in here too, and Django needs no SQLAlchemy.
    if name != "guard_engine":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return importlib.import_module(f"{__name__}._engine").guard_engine
    except ImportError as error:
        raise ImportError("SQLAlchemy is missing: pip install 'guardrails-db[sqlalchemy]'") from error
