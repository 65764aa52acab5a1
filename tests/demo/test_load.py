"""The users: when they come, and how patient they are."""

from __future__ import annotations

import asyncio
from collections import Counter

import aiohttp
import pytest

from guardrails.demo.load import Client, arrivals, pause_before_retry, send_all
from guardrails.demo.records import Arrival, Twin
from guardrails.demo.scenarios import ATTEMPTS, POOL_CAPACITY, SCENARIOS


class Dice:
    def __init__(self, value):
        self.random = lambda: value


@pytest.mark.parametrize(
    ("tries", "retry_after", "rolled", "expected"),
    [
        (1, None, 0.5, 0.2),
        (2, None, 0.5, 0.4),
        (3, None, 0.0, 0.4),
        (3, None, 1.0, 1.2),
        (1, 2.0, 0.0, 2.0),  # never earlier than asked
        (3, 2.0, 1.0, 3.0),
    ],
)
def test_pause_before_retry(tries, retry_after, rolled, expected):
    assert pause_before_retry(tries, retry_after, Dice(rolled)) == pytest.approx(expected)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_same_seed_gives_the_same_arrivals_in_order(name):
    people = arrivals(SCENARIOS[name], 30, 3)
    assert people == arrivals(SCENARIOS[name], 30, 3)
    assert people != arrivals(SCENARIOS[name], 30, 4)
    assert [user.at for user in people] == sorted(user.at for user in people)
    assert [user.number for user in people] == list(range(len(people)))
    assert people[0].at > 0.0
    assert people[-1].at < 30


def test_rates_are_those_of_the_scenario():
    scenario = SCENARIOS["burst"]
    people = arrivals(scenario, 60, 1)
    in_fault = [user for user in people if 5.0 <= user.at < 15.0 and user.path == "/orders"]
    count = Counter(user.path for user in people)
    assert len(in_fault) == pytest.approx(10 * 3 * POOL_CAPACITY / scenario.query_seconds, rel=0.15)
    assert count["/ping"] == pytest.approx(60 * scenario.nodb_rate, rel=0.15)


def test_the_leaky_endpoint_is_called_in_the_fault_only():
    leaks = [user.at for user in arrivals(SCENARIOS["leak"], 60, 1) if user.path == "/reports"]
    assert len(leaks) > POOL_CAPACITY
    assert min(leaks) >= 5.0
    assert max(leaks) < 15.0


@pytest.mark.parametrize("name", ["lock", "slow"])
def test_healthy_load_is_light_and_retries_make_it_too_much(name):
    """The plain twin stays exhausted because of the arithmetic of the load, not because it is weak."""
    scenario = SCENARIOS[name]
    capacity = POOL_CAPACITY / scenario.query_seconds
    assert scenario.main_rate < capacity / 3
    assert ATTEMPTS * scenario.main_rate >= capacity


class Response:
    def __init__(self, status, headers=(), kind="application/json"):
        self.status, self.headers, self.content_type = status, dict(headers), kind
        self.ok = status < 400

    async def read(self):
        return b""

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        return None


class Session:
    """Answers from a script; an exception in it is raised."""

    def __init__(self, *script):
        self.script = list(script)

    def get(self, address):
        answer = self.script.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def live(session, path="/orders"):
    twin = Twin("plain")

    async def main():
        loop = asyncio.get_running_loop()
        epoch = loop.time()
        client = Client(session, "http://x", twin, lambda: loop.time() - epoch, 1)
        await send_all([Arrival(0.0, path, 0)], [client], lambda: loop.time() - epoch)

    asyncio.run(main())
    return twin


PROBLEM = Response(503, {"Retry-After": "0"}, "application/problem+json")


@pytest.mark.parametrize(
    ("script", "answers"),
    [
        ([Response(200)], ["ok"]),
        ([PROBLEM, Response(200)], ["rejected", "ok"]),
        ([PROBLEM] * 4, ["rejected"] * 4),
        # Whatever names no reason is no refusal of ours, whatever its status.
        ([Response(503, {"Retry-After": "0"}), Response(200)], ["error", "ok"]),
        ([aiohttp.ClientConnectionError("reset"), Response(200)], ["error", "ok"]),
        ([TimeoutError(), Response(200)], ["timeout", "ok"]),
    ],
)
def test_a_user_tries_up_to_four_times(script, answers):
    twin = live(Session(*script))
    assert [one.answer for one in twin.users[0].tries] == answers
    assert twin.users[0].served == (answers[-1] == "ok")
    assert len(twin.tries) == len(answers)


def test_only_the_main_endpoint_is_counted_by_the_try():
    twin = live(Session(Response(200)), path="/ping")
    assert len(twin.users) == 1
    assert twin.tries == []
