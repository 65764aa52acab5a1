"""The five scenarios of the demo, as frozen settings.

Depends on nothing: it has rates, times and captions, and neither makes a fault nor sends traffic.

The default load is 15 users a second with queries of 250 ms. The plain pool can serve 15 / 0.25 = 60 of
them a second, four times the load. But users without an answer try up to four times, the bystander's users
do, too, and connections take time to open: together more than the pool can serve. So the plain app stays
exhausted after the fault. A compartment has 10 slots, of which healthy traffic uses four. The queries are few
and long, because two slow cores must run both twins, the server and the users without becoming a bottleneck.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ATTEMPTS", "CLIENT_TIMEOUT", "MAINS", "POOL_CAPACITY", "SCENARIOS", "Scenario"]

ORDERS, PRICES, BYSTANDER, NODB, LEAKY = "/orders", "/prices", "/items", "/ping", "/reports"

MAINS = frozenset({ORDERS, PRICES})
"""The possible main endpoints; each scenario has one of them."""

POOL_CAPACITY = 15
"""SQLAlchemy's defaults: 5 connections kept, 10 more under load."""

CLIENT_TIMEOUT = 2.0
"""Seconds that a client waits for one try, from the moment at which it should have been sent."""

ATTEMPTS = 4
"""One try and up to three retries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One scenario: a steady load, and a fault between two instants.

    Attributes:
        name: The name on the command line.
        title: The fault, in a few words.
        caption: The effects to watch, in a sentence or two.
        main: The main endpoint, which needs the faulty part.
        main_rate: Users per second at the main endpoint.
        query_seconds: Seconds of one query of the main endpoint in the database.
        burst_rate: Users per second at the main endpoint during the fault; None for no change.
        bystander_rate: Users per second at the endpoint of another table.
        nodb_rate: Users per second at the endpoint without a database.
        leak_rate: Users per second at the endpoint that leaks connections, during the fault.
        fault_starts: Seconds from the start of the load.
        fault_ends: Seconds from the start of the load.
    """

    name: str
    title: str
    caption: str
    main: str = ORDERS
    main_rate: float = 15.0
    query_seconds: float = 0.25
    burst_rate: float | None = None
    bystander_rate: float = 15.0
    nodb_rate: float = 10.0
    leak_rate: float = 0.0
    fault_starts: float = 5.0
    fault_ends: float = 15.0


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            name="lock",
            title="a migration holds LOCK TABLE orders",
            caption="For 10 s a transaction keeps the orders table locked; then it ends. "
            "The items table is never locked. Watch which app recovers.",
        ),
        Scenario(
            name="slow",
            title="every query takes 2 s longer",
            caption="For 10 s the database needs 2 s more for each query, on every table.",
        ),
        Scenario(
            name="burst",
            title="three times the capacity arrives",
            caption="For 10 s three times as many users arrive as the pool can serve. Nothing is broken.",
            main_rate=6.0,
            query_seconds=0.5,
            burst_rate=3 * POOL_CAPACITY / 0.5,
        ),
        Scenario(
            name="leak",
            title="an endpoint forgets to close its connections",
            caption="For 10 s each call of /reports keeps a connection; then all of them are closed. "
            "Until then only the rest of the pool can work.",
            main_rate=25.0,
            query_seconds=0.05,
            leak_rate=6.0,
        ),
        Scenario(
            name="redis-freeze",
            title="the cache stops answering",
            caption="For 10 s Valkey is frozen: connections stay open and no answer comes. "
            "The database has the prices, too. Watch which app asks it.",
            main=PRICES,
        ),
    )
}
