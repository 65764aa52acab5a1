"""The phases of a two-phase transaction: one call of PEP 249's, or statements that arrive at the hooks.

Depends on the worker; must not know any driver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Dialect

from guardrails._dbapi.runner import StatementRunner
from guardrails.errors import CallTimeoutError, CommitUnknownError, RejectedError
from guardrails.integrations.sqlalchemy._pool import Admission
from guardrails.integrations.sqlalchemy._raw import held

__all__ = ["TwoPhase"]


class TwoPhase:
    """Puts the phases of a dialect's two-phase transactions through a worker.

    Args:
        dialect: The dialect.
        admission: Knows which checkout a connection is in.
        worker: Runs the work.
    """

    def __init__(self, dialect: Dialect, admission: Admission, worker: StatementRunner) -> None:
        self._dialect = dialect
        self._checkout_of = admission.checkout_of
        self._runner = worker

    def around_prepare(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Refuses the first phase before it begins, and not in the middle where it is several statements."""

        def prepare(connection: Any, xid: Any) -> Any:
            if hasattr(held(connection.connection), "tpc_prepare"):
                return original(connection, xid)
            self._runner.check_time_left()
            with self._ending(connection):
                return original(connection, xid)

        return prepare

    def around_end(self, original: Callable[..., Any], *, commit: bool) -> Callable[..., Any]:
        """Bounds the end of a two-phase transaction: one call of PEP 249's, or statements.

        A prepared transaction keeps its locks until it is ended, so its end is never refused.
        """
        unknown, dialect = self._runner.unknown, self._dialect

        def end(connection: Any, xid: Any, is_prepared: bool = True, recover: bool = False) -> Any:  # noqa: FBT001, FBT002 - SQLAlchemy's
            fairy, args = connection.connection, (connection, xid, is_prepared, recover)
            if commit and not is_prepared:
                try:
                    self._runner.check_time_left()
                except RejectedError:
                    dialect.do_rollback_twophase(connection, xid, is_prepared=False)
                    raise
            if hasattr(held(fairy), "tpc_commit"):
                return fairy.guardrails_end(original, *args, commit=commit, ending=True)
            try:
                with self._ending(connection):
                    return original(*args)  # it arrives at the hooks as statements
            except CommitUnknownError:
                raise
            except CallTimeoutError as error:
                if not commit:
                    raise
                raise unknown(error) from error.__cause__

        return end

    @contextmanager
    def _ending(self, connection: Any) -> Iterator[None]:
        """Lets the statements of the block have a little time when there is none left."""
        checkout = self._checkout_of(connection.connection._connection_record)  # noqa: SLF001 - no public way
        if checkout is None:
            yield
            return
        checkout.ends = True
        try:
            yield
        finally:
            checkout.ends = False
