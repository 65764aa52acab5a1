"""The load: the arrivals of users, and their retries.

Arrivals are computed before the run and do not wait for answers (an open loop). Both twins get the same
arrivals, and a user's backoff is the same at either twin. Must not know faults or guards.
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
    """Computes all arrivals in their order: independent Poisson processes with one seed.

    Args:
        scenario: Rates and the time of the fault.
        seconds: Time in which users arrive.
        seed: The same seed gives the same arrivals.
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
    """Returns the seconds that a client waits before it tries again.

    After a ``Retry-After`` it waits that long and up to half of it more, so that clients that were refused
    together do not come back together. Otherwise it doubles 0.2 s, plus or minus half.
    """
    if retry_after is not None:
        return retry_after * (1.0 + _JITTER * dice.random())
    backoff = _FIRST_BACKOFF * 2.0 ** (tries_made - 1)
    return backoff * (1.0 - _JITTER + 2.0 * _JITTER * dice.random())


class Client:
    """The users of one twin.

    Args:
        session: The HTTP client; its own limits must be off.
        address: The twin's address, such as ``http://127.0.0.1:8000``.
        twin: The records to write.
        clock: Seconds from the start of the load.
        seed: Seeds each user's jitter, together with the user's number.
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
        """Makes up to four tries of one user, each measured from the moment it should have been sent."""
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
        limit = meant_at + CLIENT_TIMEOUT - self._clock()
        try:
            async with asyncio.timeout(limit), self._session.get(self._address + path) as response:
                await response.read()
                return _judge(response)
        except TimeoutError:
            return "timeout", None
        except aiohttp.ClientError:
            return "error", None


def _judge(response: aiohttp.ClientResponse) -> tuple[Answer, float | None]:
    if response.ok:
        return "ok", None
    header = response.headers.get("Retry-After", "")
    retry_after = float(header) if response.status == _UNAVAILABLE and header.isdecimal() else None
    problem = response.content_type == "application/problem+json"
    kind: Literal["rejected", "error"] = (
        "rejected" if response.status == _UNAVAILABLE and problem else "error"
    )
    return kind, retry_after


async def send_all(people: Sequence[Arrival], clients: Sequence[Client], clock: Callable[[], float]) -> None:
    """Starts each user at each twin at its time of arrival; returns when the last user is done."""
    async with asyncio.TaskGroup() as stories:
        for user in people:
            # One sleep for all users that are due: a timer for each user would be a load itself.
            if (ahead := user.at - clock()) > 0.0:
                await asyncio.sleep(ahead)
            for client in clients:
                stories.create_task(client.live(user))
