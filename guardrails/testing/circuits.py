"""Sets circuits to the state that a test needs. Depends on guards alone."""

from __future__ import annotations

from types import TracebackType

from guardrails._guard.guard import Guard, set_state

__all__ = ["open_circuit"]


class _Opened:
    """The context of `open_circuit`: resets the guard at its end."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def __enter__(self) -> Guard:
        return self._guard

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._guard.reset()


def open_circuit(guard: Guard) -> _Opened:
    """Opens a guard's circuit as if it had tripped, without a single failure.

    ::

        with open_circuit(db):
            assert client.get("/orders").status_code == 503

    It stays open for the policy's ``wait_duration_in_open_state``, then admits probes. For a longer time use
    ``guard.force_open()``, whose refusals have no ``retry_after``. At the end of a ``with`` block the circuit
    is closed and empty (`Guard.reset`).

    Args:
        guard: The guard, or a compartment of one.

    Raises:
        TypeError: ``guard`` is no guard.
    """
    if not isinstance(guard, Guard):
        raise TypeError(f"open_circuit() takes a Guard, got {type(guard).__name__}")
    set_state(guard, "open")
    return _Opened(guard)
