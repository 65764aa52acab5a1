"""A clock that a test moves by hand, in place of ``time.monotonic``. Depends on nothing."""

from __future__ import annotations

__all__ = ["FakeClock"]


class FakeClock:
    """A clock that moves only by `advance` and `set`.

    ::

        clock = FakeClock()
        guard = Guard("db", max_concurrent_calls=5, clock=clock)
        clock.advance(2.5)

    Args:
        now: The first reading.
    """

    def __init__(self, now: float = 0.0) -> None:
        self._now = now

    def __call__(self) -> float:
        """The reading, in seconds."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Lets ``seconds`` pass; a negative number sets the clock back."""
        self._now += seconds

    def set(self, now: float) -> None:
        """Sets the reading to ``now``."""
        self._now = now

    def __repr__(self) -> str:
        return f"<FakeClock {self._now!r}>"
