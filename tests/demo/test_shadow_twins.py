"""The demo's shop without guards, in shadow and enforcing, one after the other, through each fault.

The same users come with the same seed. They wait for each answer as long as it takes and try once, so no
clock of theirs decides: what the shop answers and asks its servers is its own doing. The database's log
shows what it was asked.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

import aiohttp
import pytest
from redis import Redis

from guardrails.demo.database import Database, async_url
from guardrails.demo.faults import fault
from guardrails.demo.load import arrivals
from guardrails.demo.scenarios import BYSTANDER, NODB, SCENARIOS
from guardrails.demo.stage import App
from guardrails.testing.servers import PostgresServer, ValkeyServer

pytestmark = [pytest.mark.slow, pytest.mark.first, pytest.mark.timeout(240)]

SECONDS = 10
STARTS, ENDS = 2.0, 9.0
"""Longer than the guard's timeout of five seconds."""

SOON = 6.7
"""Before redis-py's own timeout of five seconds, at which the shop asks the database instead."""

BURST = 60.0
"""Users a second, twice what the pool can serve: the demo's 90 are too many for two loaded cores."""

OWN_QUESTION = "WITH"
"""The first word of the guard's question who holds the locks, on a connection of its own."""


@dataclass
class Service:
    """What one shop answered and asked.

    Attributes:
        answers: The path and the status of each user's answer, by the user's number.
        statements: How often the database was asked for what, by the statement's first words.
        guards: The figures of its guards and their compartments at the end, by name.
        sums: What its guards in shadow would have done, as on a status page.
    """

    answers: dict = field(default_factory=dict)
    statements: Counter = field(default_factory=Counter)
    guards: dict = field(default_factory=dict)
    sums: dict = field(default_factory=dict)

    def answered(self, status):
        """The number of answers with this status, by path."""
        return Counter(path for path, found in self.answers.values() if found == status)


async def come(session, address, user, service, epoch):
    await asyncio.sleep(user.at - (time.monotonic() - epoch))
    async with session.get(address + user.path) as response:
        await response.read()
        service.answers[user.number] = (user.path, response.status)


async def send_all(app, session, scenario, service, cause):
    """Sends all users, each at its time, and causes the fault meanwhile."""
    for path in (scenario.main, BYSTANDER, NODB) * 3:
        async with session.get(app.address + path) as response:
            assert response.status == 200
    epoch = time.monotonic() + 0.1
    async with asyncio.TaskGroup() as tasks:
        for user in arrivals(scenario, SECONDS, seed=1):
            tasks.create_task(come(session, app.address, user, service, epoch))
        await asyncio.sleep(scenario.fault_starts - (time.monotonic() - epoch))
        async with cause:
            await asyncio.sleep(scenario.fault_ends - (time.monotonic() - epoch))
    await asyncio.sleep(0.3)  # the last statements reach the log


async def perform(server, scenario, mode):
    """Runs one shop through the fault, without guards if there is no mode."""
    service, name = Service(), "guarded" if mode else "plain"
    database = Database(async_url(server.url("asyncpg") + "?ssl=disable"))
    async with AsyncExitStack() as stack:
        cache = stack.enter_context(ValkeyServer.start())
        with Redis(port=cache.port) as client:
            client.mset({f"price:{number}": number % 100 for number in range(1, 1001)})
        await stack.enter_async_context(database.prepared())
        started = App.started(name, database, scenario, cache.port, mode=mode or "enforce")
        app = stack.enter_context(started)
        patient = aiohttp.ClientTimeout(total=None)
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=patient)
        await stack.enter_async_context(session)
        await app.ready(session)
        cause = fault(scenario.name, database, cache, lambda: app.ask(session, "mend", 60))
        await send_all(app, session, scenario, service, cause)
        stats = await app.ask(session, "stats", 60)
    service.guards = stats["guards"]
    service.sums = {guard["name"]: guard["shadow"] for guard in stats["roots"]}
    pattern = rf"^{database.application(name)} LOG:  (?:execute \S+|statement): (\w+(?: \S+ \S+)?)"
    service.statements = Counter(re.findall(pattern, (server.home / "log").read_text(), re.MULTILINE))
    return service


def nothing_has_changed(bare, shadow):
    """Each user got the same status, and the database was asked the same, besides the guard's question."""
    assert shadow.answers == bare.answers
    assert {status for _, status in bare.answers.values()} == {200}
    assert sum(bare.statements.values()) > 300
    added = shadow.statements - bare.statements
    own = sum(count for words, count in added.items() if words.startswith(OWN_QUESTION))
    assert own <= 1
    assert bare.statements - shadow.statements == Counter()
    # Its connection sends no more than a handful of statements.
    assert sum(added.values()) <= 6 * own, added


def near(found, wanted, least=5):
    return found == pytest.approx(wanted, rel=0.2, abs=least)


def the_sums_are_what_enforcing_did(scenario, shadow, real):
    """Refusals and stops, for each route and altogether."""
    if scenario.name == "redis-freeze":  # the shop answers out of the database instead
        sums, figures = shadow.sums["prices"], real.guards["prices"]
        # The circuit stays open for a while after the fault, and how long is drawn: that is a second's users.
        assert near(sums["refused"], sum(figures["rejected"].values()), least=scenario.main_rate)
        assert near(sums["stopped"], figures["failed"])
        assert (shadow.sums["db"]["refused"], shadow.sums["db"]["stopped"]) == (0, 0)
        return
    sums = shadow.sums["db"]
    refused, stopped = real.answered(503), real.answered(504)
    assert near(sums["refused"], refused.total())
    assert near(sums["stopped"], stopped.total())
    guarded = [path for path, _ in shadow.answers.values() if path != NODB]
    assert sums["judged"] == pytest.approx(len(guarded) + 9, rel=0.05)  # the first requests, too
    routes = {route.removeprefix("GET "): sum(counts.values()) for route, counts in sums["routes"].items()}
    for path in {*routes, *refused}:
        assert near(routes.get(path, 0), refused[path]), (routes, refused)
    assert (shadow.sums["prices"]["refused"], shadow.sums["prices"]["stopped"]) == (0, 0)


@pytest.mark.parametrize("name", SCENARIOS)
def test_shadow_changes_nothing_and_says_what_enforcing_then_does(name):
    ends = SOON if name == "redis-freeze" else ENDS
    scenario = replace(SCENARIOS[name], fault_starts=STARTS, fault_ends=ends)
    if scenario.burst_rate:
        scenario = replace(scenario, burst_rate=BURST)
    with PostgresServer.start(settings={"log_statement": "all", "log_line_prefix": "%a "}) as server:
        bare, shadow, real = (
            asyncio.run(perform(server, scenario, mode)) for mode in (None, "shadow", "enforce")
        )
    nothing_has_changed(bare, shadow)
    the_sums_are_what_enforcing_did(scenario, shadow, real)
    assert real.answers != bare.answers or name == "redis-freeze"
