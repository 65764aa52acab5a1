"""Guards pools of psycopg_pool: slots for connections, evidence from statements, deadlines that stop them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guardrails._util.lazy import on_use

if TYPE_CHECKING:
    from guardrails.integrations.psycopg_pool._attachment import guard_pool

__all__ = ["guard_pool"]

# Imported on use, so that the package can be imported without psycopg_pool.
_ON_USE = {"guard_pool": f"{__name__}._attachment"}

__getattr__ = on_use(__name__, _ON_USE, "psycopg_pool is missing: pip install 'psycopg[binary,pool]'")
