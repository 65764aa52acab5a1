"""The methods of a guarded pool, in threads and on event loops. Must not import statements.

The twins differ in an ``await``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Any, NoReturn, Protocol

from psycopg_pool import PoolTimeout, TooManyRequests

from guardrails._dbapi.pool_wait import begin_wait
from guardrails._dbapi.runner_on_loop import LoopRunner
from guardrails._guard.guard import Guard
from guardrails._pool.checkouts import Checkouts
from guardrails._pool.figures import PoolFigures
from guardrails._pool.idle_pool import run_to_end
from guardrails._runtime.scope import deadline, note_guard_error
from guardrails.errors import CallTimeoutError, DeadlineSpentError, RejectedError
from guardrails.fleet._pool_lease import PoolLease
from guardrails.integrations.psycopg_pool._borrowing import borrow, borrow_async
from guardrails.integrations.psycopg_pool._errors import PoolTimeoutError
from guardrails.integrations.psycopg_pool._upkeep import PsycopgPoolUpkeep
from guardrails.integrations.psycopg_pool._work import PoolCheckout

__all__ = ["hooks", "hooks_on_loop"]

_LEAST = 0.001
"""Seconds of the shortest wait."""

_NOT_LENT = (PoolTimeout, TooManyRequests, CallTimeoutError)


class Admission(Protocol):
    """What the methods of a pool need; see `PoolAdmission`."""

    checkouts: Checkouts
    figures: PoolFigures
    guard: Guard
    lease: PoolLease | None
    lends: LoopRunner
    upkeep: PsycopgPoolUpkeep | None

    def check_home(self) -> None:
        """Checks that the pool belongs to this process and to the running event loop."""

    def new_checkout(self) -> PoolCheckout:
        """Makes a checkout for the caller of the pool's method."""

    def hand_out(self, connection: Any, checkout: PoolCheckout) -> Any:
        """Begins a checkout and returns its connection."""

    def raise_no_connection(self, error: Exception) -> NoReturn:
        """Raises the guard's error for a caller who has got no connection."""

    def is_revoked(self, connection: Any) -> bool:
        """True if a connection that its user returns was taken back."""

    def before_return(self, connection: Any) -> PoolCheckout | None:
        """Prepares the return of a connection; None if it has no checkout."""

    def after_return(self, connection: Any, checkout: PoolCheckout) -> None:
        """Releases the slots of a checkout, once."""

    def resized(self) -> None:
        """Follows the pool's new size with the guard's slots."""


def hooks(admission: Admission, base: Any) -> dict[str, Any]:
    """Returns the methods of a pool in threads."""
    getconn = _getter(admission, base)

    def putconn(self: Any, conn: Any) -> None:
        if admission.is_revoked(conn):
            return
        self._check_pool_putconn(conn)
        checkout = admission.before_return(conn)
        try:
            if admission.upkeep is not None and admission.upkeep.must_drop(conn):
                run_to_end(admission.upkeep.close(conn))
            else:
                base.putconn(self, conn)
        finally:
            if checkout is not None:
                admission.after_return(conn, checkout)

    def resize(self: Any, *args: Any, **kwargs: Any) -> None:
        base.resize(self, *args, **kwargs)
        admission.resized()

    return {"getconn": getconn, "putconn": putconn, "resize": resize}


def hooks_on_loop(admission: Admission, base: Any) -> dict[str, Any]:
    """Returns the methods of a pool on an event loop."""
    getconn = _getter_on_loop(admission, base)

    async def putconn(self: Any, conn: Any) -> None:
        if admission.is_revoked(conn):
            return
        self._check_pool_putconn(conn)
        checkout = admission.before_return(conn)
        try:
            if admission.upkeep is not None and admission.upkeep.must_drop(conn):
                await admission.upkeep.close(conn)
            else:
                await base.putconn(self, conn)
        finally:
            if checkout is not None:
                admission.after_return(conn, checkout)

    async def resize(self: Any, *args: Any, **kwargs: Any) -> None:
        await base.resize(self, *args, **kwargs)
        admission.resized()

    return {"getconn": getconn, "putconn": putconn, "resize": resize}


def _within(pool: Any, checkout: PoolCheckout, timeout: float | None) -> AbstractContextManager[object]:
    """A block that waits for slots, for as long as its caller or the pool waits for a connection."""
    limit = pool.timeout if timeout is None else timeout
    if limit >= checkout.guard.call_settings.gates[-1].max_wait:
        return nullcontext()
    return _PoolTimeout(checkout.guard.name, limit)


class _PoolTimeout:
    """A deadline whose end is the pool's own error."""

    def __init__(self, name: str, seconds: float) -> None:
        self._name, self._seconds = name, seconds
        self._scope = deadline(max(seconds, _LEAST))
        self._since = monotonic()

    def __enter__(self) -> None:
        self._scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._scope.__exit__(kind, error, traceback)
        if isinstance(error, DeadlineSpentError) and monotonic() - self._since >= self._seconds:
            raise note_guard_error(PoolTimeoutError(self._name, self._seconds)) from error


def _getter(admission: Admission, base: Any) -> Callable[..., Any]:
    core, figures, lease = admission.guard.call_settings.gates[0].core, admission.figures, admission.lease

    def getconn(self: Any, timeout: Any = None) -> Any:
        if self.closed:
            return base.getconn(self, timeout)  # it raises
        admission.check_home()
        if lease is not None and not lease.admits:
            lease.admit()
        checkout = admission.new_checkout()
        try:
            with _within(self, checkout, timeout):
                checkout.take_slots()
        except RejectedError as refusal:
            admission.checkouts.refused(refusal)
            raise
        pool_wait = None
        try:
            if core.enforces:
                get = partial(borrow, self, partial(base.getconn, self), timeout)
                connection = admission.lends.connect(get, {})
            else:
                pool_wait = begin_wait(figures, checkout, on_loop=False)
                connection = base.getconn(self, timeout)
            return admission.hand_out(connection, checkout)
        except _NOT_LENT as error:
            checkout.release_slots()
            admission.raise_no_connection(error)
        except BaseException:
            checkout.release_slots()
            raise
        finally:
            if pool_wait is not None:
                pool_wait.end()

    return getconn


def _getter_on_loop(admission: Admission, base: Any) -> Callable[..., Any]:
    core, figures, lease = admission.guard.call_settings.gates[0].core, admission.figures, admission.lease

    async def getconn(self: Any, timeout: Any = None) -> Any:  # noqa: ASYNC109 - psycopg_pool's own
        if self.closed:
            return await base.getconn(self, timeout)  # it raises
        admission.check_home()
        if lease is not None and not lease.admits:
            await lease.admit_async()
        checkout = admission.new_checkout()
        try:
            with _within(self, checkout, timeout):
                await checkout.take_slots_async()
        except RejectedError as refusal:
            admission.checkouts.refused(refusal)
            raise
        pool_wait = None
        try:
            if core.enforces:
                get = partial(borrow_async, self, partial(base.getconn, self), timeout)
                connection = await admission.lends.connect_async(get, {})
            else:
                pool_wait = begin_wait(figures, checkout, on_loop=True)
                connection = await base.getconn(self, timeout)
            return admission.hand_out(connection, checkout)
        except _NOT_LENT as error:
            checkout.release_slots()
            admission.raise_no_connection(error)
        except BaseException:
            checkout.release_slots()
            raise
        finally:
            if pool_wait is not None:
                pool_wait.end()

    return getconn
