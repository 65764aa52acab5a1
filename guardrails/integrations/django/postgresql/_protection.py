"""One guard and the databases behind it. Must not open, make or look for a pool."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from django.db import utils
from django.db.backends.postgresql import base

from guardrails._dbapi.runner import StatementRunner
from guardrails._guard.guard import COMPARTMENTS, Guard, attach, set_compartments
from guardrails._pool.checkout import Checkout
from guardrails._runtime.fork import ForkedLock
from guardrails._util.checks import Faults
from guardrails._util.weak_registry import WeakRegistry
from guardrails.errors import ConfigurationError, GuardrailsError
from guardrails.integrations.django._names import named
from guardrails.integrations.django.postgresql._pools import DjangoPsycopg, FromPool, largest

__all__ = ["ErrorWrapper", "Protection", "ThreadCheckout", "protect"]

_ANSWERS = tuple(
    getattr(errors, name)
    for errors in (base.Database, utils)
    for name in ("IntegrityError", "ProgrammingError", "DataError", "NotSupportedError")
)
"""Errors that say something about the statement and prove that the database is alive: the driver's, and
Django's for them."""


def _as_it_is(connection: Any) -> Any:
    """The driver's own connection: Django has no other."""
    return connection


class ThreadCheckout(Checkout):
    """One that a thread may leave behind when it ends with its connection open."""

    __slots__ = ()

    def __del__(self) -> None:
        self.release_slots()


class ErrorWrapper(utils.DatabaseErrorWrapper):  # type: ignore[misc]  # Django has no types
    """Leaves the guard's own errors as they are, also those that are a driver's error as well."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None and not issubclass(kind, GuardrailsError):
            super().__exit__(kind, error, traceback)


class Protection:
    """The state that the connections of all threads and aliases behind one guard have in common.

    Attributes:
        guard: The guard.
        on: Whether the guard is still attached.
        direct: Runs statements, and opens connections where there is no pool.
        pooled: Takes connections from a pool.
    """

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.on = True
        self.direct = StatementRunner(guard, DjangoPsycopg(), _as_it_is, is_async=False, errors=_ANSWERS)
        self.pooled = StatementRunner(guard, FromPool(), _as_it_is, is_async=False, errors=_ANSWERS)
        self._slots = guard.call_settings.gates[0].core.bulkhead
        self._pools: WeakRegistry[Any] = WeakRegistry()

    @property
    def most(self) -> int | None:
        """See Attachment: what the smallest pool can hold that was asked so far."""
        return min((pool.max_size for pool in self._pools.living() if not pool.closed), default=None)

    def detach(self) -> None:
        """See Attachment."""
        self.on = False

    def check(self, alias: str, most: int | None) -> None:
        """Checks that a pool has a connection for each of the guard's slots.

        Raises:
            ConfigurationError: It has fewer.
        """
        if most is not None and self._slots.limit > most:
            faults = Faults(f"DATABASES[{alias!r}]")
            faults.count(f"the slots of guard {self.guard.name!r}", self._slots.limit, most=most)
            faults.raise_if_any()

    def serve(self, alias: str, pool: Any) -> None:
        """Notes that connections come from a pool, too; see ``check``."""
        self.check(alias, pool.max_size)
        self._pools.add(pool)


_lock = ForkedLock()
_protections: dict[Guard, Protection] = {}


def protect(alias: str, options: dict[str, Any]) -> Protection:
    """The protection that an alias asks for in its ``OPTIONS``; the first to ask attaches the guard.

    Raises:
        ConfigurationError: The options are wrong.
    """
    where = f"DATABASES[{alias!r}]"
    faults = Faults(where)
    guard = named(f"{where}: OPTIONS['guard']", options.get("guard"))
    if not isinstance(guard, Guard):
        faults.add("OPTIONS['guard']", guard, "a Guard or its dotted name")
    compartments = options.get("compartments", COMPARTMENTS[0])
    faults.choice("OPTIONS['compartments']", compartments, COMPARTMENTS)
    faults.raise_if_any()
    most = largest(options.get("pool"))
    with _lock:
        protection = _protections.get(guard)
        if protection is not None:
            protection.check(alias, most)
            return protection
        if guard.call_settings.attached:
            raise ConfigurationError(f"{where}: guard {guard.name!r} protects something else already")
        protection = Protection(guard)
        protection.check(alias, most)
        _protections[guard] = protection
        set_compartments(guard, compartments)
        attach(guard, protection)
    return protection
