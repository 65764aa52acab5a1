"""The load: when users arrive, and what an honest client does with the answer it gets.

Arrivals are decided before the run and wait for nobody (an open loop); both twins get the same ones,
and a user's patience and backoff are the same numbers at either twin. Knows nothing of faults or guards.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Literal, Protocol

import aiohttp

from guardrails.demo.records import Arrival, Try, User
from guardrails.demo.scenarios import (
    ATTEMPTS,
    BYSTANDER,
    CLIENT_TIMEOUT,
    LEAKY,
    MAINS,
    NODB,
    Scenario,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from guardrails.demo.records import Answer, Twin

__all__ = ["Client", "arrivals", "pause_before_retry", "send_all"]

_FIRST_BACKOFF = 0.2
_JITTER = 0.5
_UNAVAILABLE = 503


class _Random(Protocol):
    def random(self) -> float: ...


def arrivals(scenario: Scenario, seconds: float, seed: int) -> list[Arrival]:
    """Everybody who will come, in the order of coming: independent Poisson processes, one seed.

    Args:
        scenario: Rates and the time of the fault.
        seconds: How long people keep arriving.
        seed: The same seed gives the same people.
    """
    dice = random.Random(seed)  # noqa: S311 - load, not secrets
    start, end = scenario.fault_starts, min(scenario.fault_ends, seconds)
    main, burst = scenario.main_rate, scenario.burst_rate or scenario.main_rate
    pieces = [
        (scenario.main, main, 0.0, start),
        (scenario.main, burst, start, end),
        (scenario.main, main, end, seconds),
        (BYSTANDER, scenario.bystander_rate, 0.0, seconds),
        (NODB, scenario.nodb_rate, 0.0, seconds),
        (LEAKY, scenario.leak_rate, start, end),
    ]
    people = sorted(
        (at, path) for path, rate, begin, stop in pieces for at in _poisson(dice, rate, begin, stop)
    )
    return [Arrival(at, path, number) for number, (at, path) in enumerate(people)]


def _poisson(dice: random.Random, rate: float, begin: float, stop: float) -> Iterator[float]:
    at = begin
    while rate > 0.0 and (at := at + dice.expovariate(rate)) < stop:
        yield at


def pause_before_retry(tries_made: int, retry_after: float | None, dice: _Random) -> float:
    """Seconds a client waits before it tries again.

    It keeps to ``Retry-After`` where it was given one and adds up to half of it, so that those who
    were sent away together do not come back together; otherwise it doubles 0.2 s, give or take half.
    """
    if retry_after is not None:
        return retry_after * (1.0 + _JITTER * dice.random())
    backoff = _FIRST_BACKOFF * 2.0 ** (tries_made - 1)
    return backoff * (1.0 - _JITTER + 2.0 * _JITTER * dice.random())


class Client:
    """Everybody who uses one twin.

    Args:
        session: The HTTP client; its own limits must be off.
        address: Where the twin listens, such as ``http://127.0.0.1:8000``.
        twin: Where to write down what happens.
        clock: Seconds from the start of the load.
        seed: Seeds each user's jitter, together with his number.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        address: str,
        twin: Twin,
        clock: Callable[[], float],
        seed: int,
    ) -> None:
        self._session = session
        self._address = address
        self._twin = twin
        self._clock = clock
        self._seed = seed

    async def live(self, user: Arrival) -> None:
        """One user's whole story: up to four tries, each counted from when it was meant."""
        dice: random.Random | None = None
        tries: list[Try] = []
        meant_at = user.at
        while True:
            answer, retry_after = await self._try(user.path, meant_at)
            tries.append(Try(meant_at, self._clock() - meant_at, answer))
            if user.path in MAINS:
                self._twin.tries.append(tries[-1])
            if answer == "ok" or len(tries) == ATTEMPTS:
                break
            dice = dice or random.Random(f"{self._seed}:{user.number}")  # noqa: S311 - jitter
            meant_at = self._clock() + pause_before_retry(len(tries), retry_after, dice)
            await asyncio.sleep(meant_at - self._clock())
        self._twin.users.append(User(user, tuple(tries)))

    async def _try(self, path: str, meant_at: float) -> tuple[Answer, float | None]:
        patience = meant_at + CLIENT_TIMEOUT - self._clock()
        try:
            async with asyncio.timeout(patience), self._session.get(self._address + path) as response:
                await response.read()
                return _judge(response)
        except TimeoutError:
            return "timeout", None
        except aiohttp.ClientError:
            return "error", None


def _judge(response: aiohttp.ClientResponse) -> tuple[Answer, float | None]:
    if response.ok:
        return "ok", None
    said = response.headers.get("Retry-After", "")
    retry_after = float(said) if response.status == _UNAVAILABLE and said.isdecimal() else None
    problem = response.content_type == "application/problem+json"
    kind: Literal["rejected", "error"] = (
        "rejected" if response.status == _UNAVAILABLE and problem else "error"
    )
    return kind, retry_after


async def send_all(people: Sequence[Arrival], clients: Sequence[Client], clock: Callable[[], float]) -> None:
    """Sends everybody to every twin at the appointed times; returns when the last story has ended."""
    async with asyncio.TaskGroup() as stories:
        for user in people:
            # One sleep for all who are due: at a thousand a second a timer each would be the load.
            if (ahead := user.at - clock()) > 0.0:
                await asyncio.sleep(ahead)
            for client in clients:
                stories.create_task(client.live(user))
