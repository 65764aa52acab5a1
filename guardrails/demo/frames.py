"""The sums over the last second that both screens show. Depends on the records; must not format them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from guardrails.demo.percentiles import percentile

if TYPE_CHECKING:
    from guardrails.demo.records import Run, Twin

__all__ = ["Frame", "frame"]


@dataclass(frozen=True, slots=True)
class Frame:
    """The results of one twin in the last second, at the main endpoint.

    Attributes:
        good: Good answers.
        refused: 503 answers with a reason and ``Retry-After``.
        lost: Errors, and tries that waited 2 s in vain.
        refused_seconds: Median latency of the refusals; None without any.
        good_seconds: Median latency of the good answers; None without any.
        checked_out: Connections out of the pool, at the last reading.
        waiting: Requests inside the app that wait for a connection, at the last reading.
        state: State of the circuit of the part in trouble, and of the whole pool's where that is not
            closed; None on the plain twin.
        pool_is_open: True if the whole pool's circuit is not closed.
    """

    good: int
    refused: int
    lost: int
    refused_seconds: float | None
    good_seconds: float | None
    checked_out: int
    waiting: int
    state: str | None
    pool_is_open: bool = False


def frame(run: Run, twin: Twin, now: float) -> Frame:
    """Sums up the last second of a twin, ``now`` seconds into the load."""
    good: list[float] = []
    refused: list[float] = []
    lost = 0
    for one in reversed(twin.tries):
        if one.ended_at < now - 1.0:
            break
        if one.answer == "ok":
            good.append(one.seconds)
        elif one.answer == "rejected":
            refused.append(one.seconds)
        else:
            lost += 1
    look = twin.looks[-1] if twin.looks else None
    return Frame(
        len(good),
        len(refused),
        lost,
        percentile(refused, 0.5),
        percentile(good, 0.5),
        look.checked_out if look else 0,
        look.waiting if look else 0,
        _circuit(run, look.states) if look else None,
        look is not None and look.states.get("db", "closed") != "closed",
    )


_TELLING = {"leak": "reports", "redis-freeze": "prices"}
"""The circuit to show for each scenario, where it is not that of the orders."""


def _circuit(run: Run, states: dict[str, str]) -> str | None:
    name = _TELLING.get(run.scenario, "orders")
    whole = states.get("db", "closed")
    state = states.get(name) or states.get(f"/{name}")  # declared, or formed by itself for the route
    return state if whole == "closed" else f"{state or 'no compartment'}, whole pool {whole}"
