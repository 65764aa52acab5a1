"""Django's wrapper of a connection, with an admission and a deadline in it. Must not import a driver.

A slot is held from the first work on a connection until Django has no more use for it in this request. What
Django does to look after connections between requests needs no slot.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from sys import _getframe
from typing import Any, ClassVar, Self, cast

from django.db.backends.base.base import NO_DB_ALIAS, BaseDatabaseWrapper
from django.utils.functional import cached_property

from guardrails.errors import CallTimeoutError, ConnectionRevokedError, RejectedError
from guardrails.integrations.django._database.connection_notes import note_closed
from guardrails.integrations.django._database.cursors import Steps
from guardrails.integrations.django._database.errors import ErrorWrapper
from guardrails.integrations.django._database.kept import Keeping
from guardrails.integrations.django._database.options import Options
from guardrails.integrations.django._database.protection import CheckoutFinalizer, Protection
from guardrails.integrations.django._database.registry import protect
from guardrails.integrations.django._database.renewal import Renewable
from guardrails.integrations.django._database.revoking import Revocable

__all__ = ["LOST", "GuardedWrapper"]

LOST = (CallTimeoutError, ConnectionRevokedError)
"""The guard's errors that cost a connection."""

_OURS = ("guard", *Options._fields)
"""The options that are not the driver's."""


class GuardedWrapper(Revocable, Renewable, Keeping, Steps, BaseDatabaseWrapper):  # type: ignore[misc]  # Django has no types
    """Mixed into Django's wrapper of a connection, before it.

    Attributes:
        kind: The kind of the database.
        question_limits: The driver's limits for a connection that asks the server about its sessions.
    """

    kind: ClassVar[type[Protection]]
    question_limits: ClassVar[dict[str, Any]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._finalizer: CheckoutFinalizer | None = None
        self._note_closed: Callable[[], object] = bool
        self._is_neutral = self._is_ending = False
        self._protection: Any = None
        if self.alias != NO_DB_ALIAS:
            self._protection = protect(self.kind, self.alias, self.settings_dict)

    def has_open(self) -> bool:
        """True if there is a connection, and it is open. Any thread may ask."""
        connection = self.connection
        return connection is not None and self.is_open(connection)

    @staticmethod
    @abstractmethod
    def is_open(connection: Any) -> bool:
        """True if the driver's connection is open."""

    @abstractmethod
    def _ping(self) -> None:
        """Pings the server."""

    @property
    def is_checked_out(self) -> bool:
        """True if the connection has a slot."""
        return self._finalizer is not None

    @property
    def _checkout(self) -> Any:
        return None if self._finalizer is None else self._finalizer.checkout

    @property
    def _guarded(self) -> Protection | None:
        """The protection, while its guard is attached."""
        protection = self._protection
        return protection if protection is not None and protection.on else None

    def copy(self, alias: str | None = None) -> Self:
        """See Django. Both have the one guard, which cannot be copied."""
        guard = self.settings_dict["OPTIONS"].get("guard")
        settings = copy.deepcopy(self.settings_dict, {id(guard): guard})
        return type(self)(settings, self.alias if alias is None else alias)

    @cached_property  # type: ignore[untyped-decorator]  # likewise
    def wrap_database_errors(self) -> Any:
        """See Django."""
        return ErrorWrapper(self)

    # --- connections -----------------------------------------------------------------------------

    def get_connection_params(self) -> dict[str, Any]:
        """See Django."""
        params: dict[str, Any] = super().get_connection_params()
        for ours in _OURS:
            params.pop(ours, None)
        return params

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """See Django."""
        protection = self._guarded
        if protection is None:
            return super().get_new_connection(conn_params)
        self.admit()
        started = protection.registry.figures.clock()
        try:
            connection, is_new = self._open(protection, super().get_new_connection, conn_params)
        except BaseException:
            self._leave()
            raise
        self._note_closed = protection.connections.add(self, connection, started if is_new else None)
        protection.handed_out(self._finalizer)
        return connection

    @abstractmethod
    def _open(
        self, protection: Any, plain: Callable[[dict[str, Any]], Any], conn_params: dict[str, Any]
    ) -> tuple[Any, bool]:
        """Opens a connection as evidence.

        Args:
            protection: The protection.
            plain: Django's own way.
            conn_params: The parameters.

        Returns:
            The connection, and False if it is one of a pool.
        """

    def close_if_health_check_failed(self) -> None:
        """See Django, which calls it before the first work of a request: the check is work already."""
        if self.connection is not None and self.health_check_enabled and not self.health_check_done:
            self.admit()
        super().close_if_health_check_failed()

    def close_if_unusable_or_obsolete(self) -> None:
        """See Django, which calls it before and after each request."""
        self.claim()
        try:
            super().close_if_unusable_or_obsolete()
        finally:
            if not self.in_atomic_block:
                self.keep()
                self._leave()

    def is_usable(self) -> bool:
        """See Django. No slot is needed; a check that fails or is slow is evidence."""
        self.claim()
        protection = self._guarded
        if protection is None or self.connection is None:
            return self.connection is not None and bool(super().is_usable())
        checkout = cast("Any", self._checkout)
        try:
            protection.direct.run(self._ping, (), self.connection, checkout, ending=True)
        except (self.Database.Error, *LOST):
            return False
        finally:
            if self.is_kept:
                self.keep()
        return True

    def _close(self) -> None:
        self.claim()
        protection = self._guarded
        try:
            if protection is None or self.connection is None:
                super()._close()
            else:
                # A pool ends an open transaction first. A connection that is cut meanwhile is closed as well.
                with suppress(*LOST):
                    protection.direct.run_limited(super()._close, (), self.connection)
        finally:
            self._note_closed()
            self._leave()

    def admit(self) -> None:
        """See Steps. Takes a slot for the work to come, unless there is one."""
        protection = self._guarded
        if protection is not None and self._finalizer is None:
            self._finalizer = protection.enter(self)
            self.claim()
            if self.connection is not None:
                protection.handed_out(self._finalizer)

    def _leave(self) -> None:
        finalizer, self._finalizer = self._finalizer, None
        if finalizer is not None:
            finalizer.protection.leave(finalizer.checkout)

    # --- work on them ----------------------------------------------------------------------------

    def step(
        self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, ending: bool = False
    ) -> Any:
        """See Steps."""
        if kwargs:
            call = partial(call, **kwargs)
        return self._work(call, args, ending=ending)

    def _commit(self) -> None:
        if self.connection is not None and not self.is_kept:
            try:
                self._work(super()._commit, (), commit=True)
            except RejectedError:
                self._rollback()  # which Django does for the database's own errors only
                raise

    def _rollback(self) -> None:
        if self.connection is not None and not self.is_kept:
            # A connection that is cut rolls back as well.
            with suppress(*LOST):
                self._work(super()._rollback, (), ending=True)

    def _savepoint(self, sid: str) -> None:
        self._neutrally(super()._savepoint, sid)

    def _savepoint_commit(self, sid: str) -> None:
        self._neutrally(super()._savepoint_commit, sid, ending=True)

    def _savepoint_rollback(self, sid: str) -> None:
        with suppress(*LOST):  # the whole transaction is rolled back then
            self._neutrally(super()._savepoint_rollback, sid, ending=True)

    def _neutrally(self, call: Callable[..., Any], *args: Any, ending: bool = False) -> Any:
        """Runs work that succeeds even while every statement fails: its success is no evidence."""
        before = self._is_neutral, self._is_ending
        self._is_neutral, self._is_ending = True, ending
        try:
            return call(*args)
        finally:
            self._is_neutral, self._is_ending = before

    def _work(
        self, call: Callable[..., Any], args: tuple[Any, ...], *, ending: bool = False, commit: bool = False
    ) -> Any:
        protection, ending = self._guarded, ending or self._is_ending
        if protection is None:
            return call(*args)
        if self._checkout is None and not ending and not commit:
            self.admit()
            if self.connection is None:
                raise self.Database.InterfaceError("this connection was closed between two requests")
        checkout = cast("Any", self._checkout)
        if checkout is not None and not checkout.site:
            # Django itself took the connection, as with ATOMIC_REQUESTS: the first line that uses it counts.
            checkout.site = protection.registry.site(_getframe(1))
        try:
            return protection.direct.run(
                call,
                args,
                self.connection,
                checkout,
                ending=ending,
                commit=commit,
                proves=not self._is_neutral,
            )
        except BaseException as error:
            if isinstance(error, LOST) or (checkout is not None and checkout.must_discard):
                self._drop(protection)
            raise

    def _drop(self, protection: Protection) -> None:
        """Closes a connection for good: a late cancel would hit the next user, or psycopg lost its state."""
        if not self._is_revoked:
            protection.registry.figures.invalidated()
            protection.direct.retire(self.connection)
            note_closed(self.connection)  # a pool drops it some time later
        self._forget()
