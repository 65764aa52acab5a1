"""Every error guardrails raises.

::

    GuardrailsError
     +- RejectedError              the call did not start
     |   +- CircuitOpenError       also a pybreaker.CircuitBreakerError
     |   +- BulkheadFullError
     |   +- DeadlineSpentError     no time was left
     |   +- ShedError              dropped for its criticality
     +- CallTimeoutError           also a TimeoutError; it started, the effect is unknown
     |   +- CommitUnknownError     a COMMIT timed out
     +- ConfigurationError         also a ValueError

The tree answers the one question a caller has: *did my call start?* No text here ever holds
SQL, parameters, host names or credentials.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pybreaker

__all__ = [
    "BulkheadFullError",
    "CallTimeoutError",
    "CircuitOpenError",
    "CommitUnknownError",
    "ConfigurationError",
    "DeadlineSpentError",
    "GuardrailsError",
    "RejectedError",
    "ShedError",
]

Reason = Literal["circuit_open", "bulkhead_full", "queue_timeout", "deadline_spent", "shed"]
"""Why a call was not admitted; the label of the ``rejected`` counters."""


class GuardrailsError(Exception):
    """Base of every error guardrails raises."""


class RejectedError(GuardrailsError):
    """The call did not start, so trying again later cannot do anything twice."""

    _wording: dict[str, str] = {  # noqa: RUF012 - one table, never written to
        "circuit_open": "the circuit is open",
        "bulkhead_full": "every slot is taken and the queue is full",
        "queue_timeout": "no slot came free in time",
        "deadline_spent": "no time is left of the deadline",
        "shed": "shed under load for its criticality",
    }

    # ``args`` holds what the constructor takes, and the properties read it: pickle, copy, multiprocessing and
    # Celery rebuild an error as ``type(error)(*error.args)``. So the one refusal of which there may be many
    # can also be made without a constructor: `LockedGate.shut_out`.

    args: tuple[str, Reason, float | None]

    def __init__(self, guard: str, reason: Reason, retry_after: float | None = None) -> None:
        self.args = (guard, reason, retry_after)

    @property
    def guard(self) -> str:
        """Name of the guard that refused."""
        return self.args[0]

    @classmethod
    def words_for(cls, reason: str) -> str:
        """A reason in words."""
        return cls._wording.get(reason, reason)

    @property
    def reason(self) -> Reason:
        """One of ``circuit_open bulkhead_full queue_timeout deadline_spent shed``."""
        return self.args[1]

    @property
    def retry_after(self) -> float | None:
        """Seconds after which a call may be admitted, or None when nobody can tell."""
        return self.args[2]

    def __str__(self) -> str:
        # Made when somebody reads it: under overload a service refuses more than it serves.
        hint = "" if self.retry_after is None else f"; try again in {self.retry_after:.3g} s"
        return f"{self.guard!r} refused the call: {self._wording[self.reason]}{hint}"


class BulkheadFullError(RejectedError):
    """Every slot was taken; ``reason`` tells a full queue from a wait that ended without a slot."""


class DeadlineSpentError(RejectedError):
    """The deadline had passed before the call could start."""


class ShedError(RejectedError):
    """Refused under pressure because more important calls need the slots."""


class CallTimeoutError(GuardrailsError, TimeoutError):
    """The call started and did not finish in time: whether it took effect is unknown."""

    # As in RejectedError, ``args`` holds what the constructor takes: pickle, copy, multiprocessing and Celery
    # rebuild an error as ``type(error)(*error.args)``.

    args: tuple[str, float]

    def __init__(self, guard: str, timeout: float) -> None:
        self.args = (guard, timeout)

    @property
    def guard(self) -> str:
        """Name of the guard whose call was stopped."""
        return self.args[0]

    @property
    def timeout(self) -> float:
        """Seconds the call was given."""
        return self.args[1]

    def __str__(self) -> str:
        return f"{self.guard!r} stopped the call: it was given {self.timeout:.3g} s"


class CommitUnknownError(CallTimeoutError):
    """A COMMIT timed out: the transaction may or may not have been committed. Never retried."""


class ConfigurationError(GuardrailsError, ValueError):
    """A setting is wrong; the message names the field, the value and what is allowed."""


def _circuit_open_error() -> type[Any]:
    """Makes the one class that needs pybreaker.

    Importing pybreaker imports redis where that is installed, which takes 0.3 s. Making a guard may cost
    that; ``import guardrails`` must not.
    """
    import pybreaker  # noqa: PLC0415 - see above

    class CircuitOpenError(RejectedError, pybreaker.CircuitBreakerError):
        """The circuit is open, or half-open with all its probes under way.

        Code written for pybreaker keeps working: ``except pybreaker.CircuitBreakerError`` catches it.
        """

    CircuitOpenError.__qualname__ = "CircuitOpenError"  # pickle looks it up by this name
    return CircuitOpenError


if TYPE_CHECKING:

    class CircuitOpenError(RejectedError, pybreaker.CircuitBreakerError):
        """Type checkers see this class; `_circuit_open_error` makes the one that exists."""

else:

    def __getattr__(name: str) -> Any:
        if name == "CircuitOpenError":
            return globals().setdefault(name, _circuit_open_error())  # two threads get the same class
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
