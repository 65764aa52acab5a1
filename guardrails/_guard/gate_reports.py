"""What a gate tells its caller, listeners and log: refusals, ends of calls, and what it would do in shadow.

Depends on the core and the runtime; must not import locks or guards. The gate's lock is free while these run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from guardrails._core.breaker import CallEnd
from guardrails._core.gate import Refusal
from guardrails._core.outcome import Outcome
from guardrails._core.shadow import UNCOUNTED
from guardrails._guard.error_classes import ErrorClasses
from guardrails._runtime.notifier import Notifier
from guardrails._runtime.scope import RequestScope, ambient, note_guard_error
from guardrails.errors import CircuitOpenError, Reason, RejectedError
from guardrails.events import CallFinished, CallRejected, WouldReject, WouldStop

__all__ = ["GateReports"]

_get_ambient = ambient.get

# ``__new__`` stores the arguments, which the properties of the error read; ``__init__`` would cost a call.
_new_error: Callable[..., RejectedError] = CircuitOpenError.__new__


class GateReports(Notifier):
    """The reports of one gate.

    Attributes:
        clock: Returns the time in seconds.
        errors: The classes of the errors that the guard raises.
    """

    __slots__ = ("clock", "errors")

    clock: Callable[[], float]
    errors: ErrorClasses

    # --- refusals ------------------------------------------------------------------------------

    def fast_refusal_error(self, reason: Reason, retry_after: float | None) -> RejectedError:
        """Creates the error of a refusal that the fast path has counted, and reports the refusal."""
        if self.listeners:
            self.report_refusal(Refusal(reason, retry_after))
        elif not self.report.noted:
            self.report.schedule()
        guard, compartment = self.identity
        error = _new_error(self.errors.rejected[reason], guard, reason, retry_after, compartment)
        if _get_ambient() is None:
            return error
        if not self.listeners:  # otherwise it is counted
            self.report.count_route()
        return note_guard_error(error)

    def refusal_error(self, refusal: Refusal) -> RejectedError:
        """Reports a refusal to the listeners and creates its error, a new one each time."""
        self.report_refusal(refusal)
        reason, retry_after = refusal
        guard, compartment = self.identity
        return note_guard_error(self.errors.rejected[reason](guard, reason, retry_after, compartment))

    def report_refusal(self, refusal: Refusal, *, at_edge: bool = False) -> None:
        """Reports a refusal to the log and the listeners, without an error.

        Args:
            refusal: The refusal.
            at_edge: True for a request that was refused before the application.
        """
        if _get_ambient() is not None:
            self.report.count_route()
        if not self.report.noted:
            self.report.schedule(at_edge=at_edge)
        if self.listeners and self.wanted(CallRejected):
            reason, retry_after = refusal
            self.notify(
                CallRejected, at=self.clock(), seq=self.next_number(), reason=reason, retry_after=retry_after
            )

    def report_end(self, outcome: Outcome, ended: CallEnd | None) -> None:
        """Reports the end of a call, if a listener wants it; None for one that had ended before."""
        if self.reports_calls and ended is not None:
            now, seq = self.core.last, self.next_number()
            self.notify(
                CallFinished, at=now, seq=seq, outcome=outcome, duration=ended.duration, slow=ended.slow
            )

    # --- in shadow -----------------------------------------------------------------------------

    def report_would_reject(self, seq: int, refusal: Refusal, origin: object) -> None:
        """Reports a call that enforcing would have refused.

        Args:
            seq: The number of the event.
            refusal: The refusal.
            origin: The request of the call, or None.
        """
        route = None
        if isinstance(origin, RequestScope):
            route = origin.name or origin.find_name()
            self._end_in_model(origin)
        self.report.sums.refused(refusal.reason, route)
        self._log_in_shadow(route)
        if self.listeners and self.wanted(WouldReject):
            reason, wait = refusal
            self.notify(WouldReject, at=self.core.last, seq=seq, reason=reason, retry_after=wait, route=route)

    def _log_in_shadow(self, route: str | None) -> None:
        if route is not None:
            self.report.count_route(route)
        if not self.report.noted:
            self.report.schedule()

    def _end_in_model(self, request: RequestScope) -> None:
        """Counts no more of a request at this gate: enforcing, it would most likely have ended here."""
        if not request.closed:
            request.reserved.setdefault(self.core, (self, UNCOUNTED))

    def note_would_stop(self, call: object, timeout: float, where: tuple[str, ...], request: Any) -> None:
        """Reports a call that has passed a limit at which it would have been stopped.

        Args:
            call: What `ShadowSums.ended` is told when it ends.
            timeout: The limit in seconds.
            where: The application's lines that made it.
            request: Its request, or None.
        """
        route = None if request is None else request.name or request.find_name()
        if request is not None:
            self._end_in_model(request)
        self.report.sums.stopped(call, timeout, where, route)
        self._log_in_shadow(route)
        if self.listeners and self.wanted(WouldStop):
            now, seq = self.core.last, self.next_number()
            self.notify(WouldStop, at=now, seq=seq, timeout=timeout, where=where, route=route)
