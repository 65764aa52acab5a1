"""Bounds the phases of two-phase transactions: one call of PEP 249, or several statements.

Depends on the statement runner; must not import a driver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Dialect

from guardrails._dbapi.runner import StatementRunner
from guardrails.errors import CallTimeoutError, CommitUnknownError, RejectedError
from guardrails.integrations.sqlalchemy._pool import EngineAdmission
from guardrails.integrations.sqlalchemy._proxied import dbapi_connection_of, revoked_connection_of

__all__ = ["TwoPhase"]


class TwoPhase:
    """Hooks for the two-phase transactions of one dialect.

    Args:
        dialect: The dialect.
        admission: Finds the checkout of a connection.
        runner: Runs the work.
    """

    def __init__(self, dialect: Dialect, admission: EngineAdmission, runner: StatementRunner) -> None:
        self._dialect = dialect
        self._checkout_of = admission.checkout_of
        self._runner = runner

    def around_prepare(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Refuses the first phase only before it begins, also where it is several statements."""

        def prepare(connection: Any, xid: Any) -> Any:
            if hasattr(dbapi_connection_of(connection.connection), "tpc_prepare"):
                return original(connection, xid)
            self._runner.check_time_left()
            with self._with_grace(connection):
                result = original(connection, xid)
            self._set_prepared(connection, on=True)
            return result

        return prepare

    def around_end(self, original: Callable[..., Any], *, commit: bool) -> Callable[..., Any]:
        """Bounds the end of a two-phase transaction: one call of PEP 249, or several statements.

        The end of a prepared transaction is never refused, because until then it keeps its locks.
        """
        unknown, dialect = self._runner.unknown, self._dialect

        def end(connection: Any, xid: Any, is_prepared: bool = True, recover: bool = False) -> Any:  # noqa: FBT001, FBT002 - SQLAlchemy's
            fairy, args = connection.connection, (connection, xid, is_prepared, recover)
            if not commit and revoked_connection_of(fairy) is not None:
                return None  # it is rolled back, or prepared and to be recovered: no error of the block
            if commit and not is_prepared:
                try:
                    self._runner.check_time_left()
                except RejectedError:
                    dialect.do_rollback_twophase(connection, xid, is_prepared=False)
                    raise
            if hasattr(dbapi_connection_of(fairy), "tpc_commit"):
                return fairy.guardrails_end(original, *args, commit=commit, ending=True)
            try:
                with self._with_grace(connection):
                    result = original(*args)  # the dialect runs statements, which are hooked
            except CommitUnknownError:
                raise
            except CallTimeoutError as error:
                if not commit:
                    raise
                raise unknown(error) from error.__cause__
            self._set_prepared(connection, on=False)
            return result

        return end

    def _set_prepared(self, connection: Any, *, on: bool) -> None:
        """Exempts a connection while its transaction is prepared: without it the locks would stay."""
        checkout = self._checkout_of(connection.connection._connection_record)  # noqa: SLF001 - no public way
        if checkout is not None and checkout.hold is not None:
            checkout.hold.set_exempt(on=on)

    @contextmanager
    def _with_grace(self, connection: Any) -> Iterator[None]:
        """Gives the statements of the block a grace period if no time is left."""
        checkout = self._checkout_of(connection.connection._connection_record)  # noqa: SLF001 - no public way
        if checkout is None:
            yield
            return
        checkout.ends = True
        try:
            yield
        finally:
            checkout.ends = False
