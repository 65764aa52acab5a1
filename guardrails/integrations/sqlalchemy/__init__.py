"""Guards SQLAlchemy engines: slots for checkouts, evidence from statements, deadlines that stop them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guardrails._util.lazy import on_use

if TYPE_CHECKING:
    from guardrails._pool.status import pool_status
    from guardrails.integrations.sqlalchemy._engine import guard_engine
    from guardrails.integrations.sqlalchemy._pool_settings import PoolSettings
    from guardrails.integrations.sqlalchemy._status import leaks

__all__ = ["PoolSettings", "guard_engine", "leaks", "pool_status"]

# Imported on use, so that the package can be imported without SQLAlchemy.
_ON_USE = {
    "PoolSettings": f"{__name__}._pool_settings",
    "guard_engine": f"{__name__}._engine",
    "leaks": f"{__name__}._status",
    "pool_status": "guardrails._pool.status",
}

__getattr__ = on_use(__name__, _ON_USE, "SQLAlchemy is missing: pip install 'guardrails-db[sqlalchemy]'")
