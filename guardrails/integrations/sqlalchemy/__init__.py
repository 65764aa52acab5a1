"""Guards SQLAlchemy engines: admission at the pool, evidence from every statement, deadlines that stop it."""

from __future__ import annotations

try:
    import sqlalchemy  # noqa: F401 - to say what to install
except ImportError as error:
    raise ImportError("SQLAlchemy is missing: pip install 'guardrails-db[sqlalchemy]'") from error

from guardrails.integrations.sqlalchemy._engine import guard_engine

__all__ = ["guard_engine"]
