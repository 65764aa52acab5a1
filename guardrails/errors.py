"""The errors that guardrails raises. Depends on nothing but pybreaker, when that is first needed.

::

    GuardrailsError
     +- RejectedError              the call did not start
     |   +- CircuitOpenError       also a pybreaker.CircuitBreakerError
     |   +- BulkheadFullError
     |   +- DeadlineSpentError     no time was left
     |   |   +- ClientGoneError    the client of its request had gone
     |   +- ShedError              dropped for its criticality
     +- CallTimeoutError           also a TimeoutError; it started, the effect is unknown
     |   +- CallAbandonedError     the client of its request went
     |   +- CommitUnknownError     a COMMIT timed out
     +- ConnectionRevokedError     the connection had been idle for too long and was taken back
     +- WarmUpError                the pool could not open its idle connections
     +- ConfigurationError         also a ValueError

The class tells a caller whether the call has started. No message holds SQL, parameters, host names or
credentials.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pybreaker

__all__ = [
    "BulkheadFullError",
    "CallAbandonedError",
    "CallTimeoutError",
    "CircuitOpenError",
    "ClientGoneError",
    "CommitUnknownError",
    "ConfigurationError",
    "ConnectionRevokedError",
    "DeadlineSpentError",
    "GuardrailsError",
    "RejectedError",
    "ShedError",
    "WarmUpError",
]


def _split(guard: str, compartment: str | None) -> tuple[str, str | None]:
    """The names of a guard and its compartment. That of a compartment has the guard's as an attribute."""
    whole: str | None = getattr(guard, "guard_name", None)
    return (guard, compartment) if whole is None else (whole, str(guard))


def _quoted(guard: str, compartment: str | None) -> str:
    """Words for who refused or stopped a call."""
    return repr(guard) if compartment is None else f"{compartment!r} of {guard!r}"


Reason = Literal["circuit_open", "bulkhead_full", "queue_timeout", "deadline_spent", "shed"]
"""The reason for a refusal, and the label of the ``rejected`` counters."""


class GuardrailsError(Exception):
    """Base of the errors that guardrails raises."""


class RejectedError(GuardrailsError):
    """The call did not start, so a later retry cannot repeat an effect."""

    _wording: dict[str, str] = {  # noqa: RUF012 - read only
        "circuit_open": "the circuit is open",
        "bulkhead_full": "every slot is taken and the queue is full",
        "queue_timeout": "no slot came free in time",
        "deadline_spent": "no time is left of the deadline",
        "shed": "shed under load for its criticality",
    }

    # ``args`` holds the constructor's arguments, and the properties read it: pickle, copy, multiprocessing
    # and Celery rebuild an error as ``type(error)(*error.args)``. So `LockedGate.fast_refusal_error` creates
    # the most frequent errors without calling a constructor.

    args: tuple[str, Reason, float | None, str | None]

    def __init__(
        self, guard: str, reason: Reason, retry_after: float | None = None, compartment: str | None = None
    ) -> None:
        guard, compartment = _split(guard, compartment)
        self.args = (guard, reason, retry_after, compartment)

    @property
    def guard(self) -> str:
        """The name of the guard, such as that of the database."""
        return self.args[0]

    @property
    def compartment(self) -> str | None:
        """The compartment of the guard that refused the call, such as ``GET /orders/{id}``.

        None if the guard itself did, which concerns all of its compartments.
        """
        return self.args[3]

    @classmethod
    def words_for(cls, reason: str) -> str:
        """The words of a message for a reason; the reason itself if it is unknown."""
        return cls._wording.get(reason, reason)

    @property
    def reason(self) -> Reason:
        """One of ``circuit_open bulkhead_full queue_timeout deadline_spent shed``."""
        return self.args[1]

    @property
    def retry_after(self) -> float | None:
        """Seconds after which a call may be admitted; None if that is unknown."""
        return self.args[2]

    def __str__(self) -> str:
        # Built only when it is read: under overload a service refuses more calls than it serves.
        hint = "" if self.retry_after is None else f"; try again in {self.retry_after:.3g} s"
        who = _quoted(self.guard, self.compartment)
        return f"{who} refused the call: {self._wording[self.reason]}{hint}"


class BulkheadFullError(RejectedError):
    """No slot was free.

    ``reason`` is ``"bulkhead_full"`` if the queue was full, too, and ``"queue_timeout"`` if the call has
    waited.
    """


class DeadlineSpentError(RejectedError):
    """The deadline had passed before the call could start."""


class ClientGoneError(DeadlineSpentError):
    """The client of the request had closed its connection before the call could start.

    Raised only where a middleware has ``cancel_on_disconnect``. It is counted in no figure of the guard.
    """

    def __init__(
        self,
        guard: str,
        reason: Reason = "deadline_spent",
        retry_after: float | None = None,
        compartment: str | None = None,
    ) -> None:
        super().__init__(guard, reason, retry_after, compartment)

    def __str__(self) -> str:
        who = _quoted(self.guard, self.compartment)
        return f"{who} refused the call: the client of the request is gone"


class ShedError(RejectedError):
    """Refused under load because more important calls need the slots."""


class CallTimeoutError(GuardrailsError, TimeoutError):
    """The call started and did not end in time. It may have taken effect."""

    # ``args`` holds the constructor's arguments, as in RejectedError.

    args: tuple[str, float, str | None]

    def __init__(self, guard: str, timeout: float, compartment: str | None = None) -> None:
        guard, compartment = _split(guard, compartment)
        self.args = (guard, timeout, compartment)

    @property
    def guard(self) -> str:
        """The name of the guard, such as that of the database."""
        return self.args[0]

    @property
    def compartment(self) -> str | None:
        """The compartment of the guard that the call belongs to; None outside all compartments."""
        return self.args[2]

    @property
    def timeout(self) -> float:
        """The time limit of the call in seconds."""
        return self.args[1]

    def __str__(self) -> str:
        who = _quoted(self.guard, self.compartment)
        return f"{who} stopped the call: it was given {self.timeout:.3g} s"


class CallAbandonedError(CallTimeoutError):
    """The call was stopped because the client of the request closed its connection.

    It may have taken effect. Raised only where a middleware has ``cancel_on_disconnect``. It is no evidence
    about the dependency.
    """

    def __str__(self) -> str:
        who = _quoted(self.guard, self.compartment)
        return f"{who} stopped the call: the client of the request is gone"


class CommitUnknownError(CallTimeoutError):
    """A COMMIT timed out. The transaction may or may not have been committed. It is never retried."""


class WarmUpError(GuardrailsError):
    """A warm-up could not open all of its connections. The cause is the error of the one that failed."""

    # ``args`` holds the constructor's arguments, as in RejectedError.

    args: tuple[str, int, int]

    def __init__(self, guard: str, idle: int, wanted: int) -> None:
        self.args = (guard, idle, wanted)

    @property
    def guard(self) -> str:
        """The name of the guard."""
        return self.args[0]

    @property
    def idle(self) -> int:
        """Number of idle connections that there are."""
        return self.args[1]

    @property
    def wanted(self) -> int:
        """Number of idle connections that there should be."""
        return self.args[2]

    def __str__(self) -> str:
        return (
            f"{self.guard!r} has {self.idle} of {self.wanted} idle connections: opening the next one failed"
        )


class ConnectionRevokedError(GuardrailsError):
    """The connection was taken back, because nothing had run on it for ``max_idle_hold`` seconds.

    The statement that raises it was not sent. The transaction that was open on the connection is rolled back.
    """

    # ``args`` holds the constructor's arguments, as in RejectedError.

    args: tuple[str, float, tuple[str, ...], str | None]

    def __init__(
        self, guard: str, seconds: float, where: Sequence[str] = (), route: str | None = None
    ) -> None:
        self.args = (guard, seconds, tuple(where), route)

    @property
    def guard(self) -> str:
        """The name of the guard that took the connection back."""
        return self.args[0]

    @property
    def seconds(self) -> float:
        """Seconds for which nothing had run on the connection."""
        return self.args[1]

    @property
    def where(self) -> tuple[str, ...]:
        """The application's lines that took the connection, such as ``"shop/orders.py:42 in load"``."""
        return self.args[2]

    @property
    def route(self) -> str | None:
        """The template of the route whose request took it; None outside a request of the middleware."""
        return self.args[3]

    def __str__(self) -> str:
        where = ", ".join(filter(None, [" < ".join(self.where), self.route]))
        idle = f"nothing had run on it for {self.seconds:.3g} s"
        taken = f"it was checked out at {where or 'an unknown line'}"
        return f"{self.guard!r} took the connection back: {idle}; {taken}"


class ConfigurationError(GuardrailsError, ValueError):
    """A setting is wrong. The message names the field, the value and the allowed range."""


def _circuit_open_error() -> type[Any]:
    """Makes the class that needs pybreaker, when it is first used.

    Importing pybreaker imports redis if that is installed, which takes 0.3 s. ``import guardrails`` must not
    take so long.
    """
    import pybreaker  # noqa: PLC0415 - see above

    class CircuitOpenError(RejectedError, pybreaker.CircuitBreakerError):
        """The circuit is open, or half-open with all its probes in flight.

        Code written for pybreaker keeps working: ``except pybreaker.CircuitBreakerError`` catches it.
        """

    CircuitOpenError.__qualname__ = "CircuitOpenError"  # the name by which pickle finds it
    return CircuitOpenError


if TYPE_CHECKING:

    class CircuitOpenError(RejectedError, pybreaker.CircuitBreakerError):
        """For type checkers. `_circuit_open_error` makes the real class."""

else:

    def __getattr__(name: str) -> Any:
        if name == "CircuitOpenError":
            return globals().setdefault(name, _circuit_open_error())  # two threads get the same class
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
