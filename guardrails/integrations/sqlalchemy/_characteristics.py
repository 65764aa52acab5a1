"""Bounds the calls that get, set or reset an isolation level or an access mode.

Depends on the runner; must not import a driver.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from guardrails._dbapi.runner import StatementRunner
from guardrails.errors import CallTimeoutError
from guardrails.integrations.sqlalchemy._pool import EngineAdmission

__all__ = ["around_characteristic", "around_set_readonly"]

_Method = Callable[..., Any]


def around_characteristic(original: _Method, admission: EngineAdmission, runner: StatementRunner) -> _Method:
    """Wraps a method of a dialect; a reset is part of a check-in."""
    run, checkout_with = runner.run, admission.checkout_with

    def bounded(connection: Any, *args: Any, **kwargs: Any) -> Any:
        call, checkout = partial(original, connection, **kwargs), checkout_with(connection)
        try:
            return run(call, args, connection, checkout, ending=True)
        except BaseException as error:
            # SQLAlchemy neither checks the state of the connection nor returns it.
            stopped = isinstance(error, CallTimeoutError) or not isinstance(error, Exception)
            if stopped and checkout is not None and checkout.proxy is not None:
                proxy: Any = checkout.proxy()
                if proxy is not None and proxy.is_valid and not checkout.checking_in:
                    proxy.invalidate(error)
            raise

    return bounded


def around_set_readonly(
    original: _Method, bounded: Callable[[_Method], _Method], runner: StatementRunner
) -> _Method:
    """Wraps ``set_readonly()`` of a dialect where it is a statement, so that the driver knows who asked."""
    ask = bounded(original)

    def set_readonly(connection: Any, value: Any) -> None:
        ask(connection, value)
        runner.note_access_mode(connection, read_only=bool(value))

    return set_readonly
