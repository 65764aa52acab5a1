"""The error for a wait in a pool's queue that took too long. Imported only where there is a pool."""

from __future__ import annotations

import psycopg
from django.db import utils
from psycopg_pool import PoolTimeout

from guardrails.errors import CallTimeoutError

__all__ = ["PoolTimeoutError"]


class PoolTimeoutError(CallTimeoutError, PoolTimeout, utils.OperationalError):  # type: ignore[misc]  # Django has no types
    """No connection of the pool came free in time: in the guard's time, the caller's, or the pool's own.

    It is a `CallTimeoutError`, for the middleware's 504, and what Django raises without a guard: psycopg's
    ``PoolTimeout`` and Django's ``OperationalError``.
    """

    def __init__(self, guard: str, timeout: float, compartment: str | None = None) -> None:
        psycopg.Error.__init__(self)  # for `diag` and the like, which a driver's error must have
        CallTimeoutError.__init__(self, guard, timeout, compartment)
