"""Performs one run, from the first server to the last figure, and leaves no process and no file behind.

Depends on the other modules of the demo, which do the steps; must not format output.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import aiohttp
from redis import Redis
from sqlalchemy.exc import SQLAlchemyError

from guardrails.demo.database import Database, UnreachableError, async_url, place, reason
from guardrails.demo.faults import fault
from guardrails.demo.interrupts import InterruptedRunError, Interrupts
from guardrails.demo.limits import allow_many_sockets, quiet_collector
from guardrails.demo.load import Client, arrivals, send_all
from guardrails.demo.origin import origin
from guardrails.demo.records import Run
from guardrails.demo.scenarios import BYSTANDER, NODB, Scenario
from guardrails.demo.selfcheck import Meter
from guardrails.demo.stage import App, StageError, require_packages
from guardrails.testing.servers import PostgresServer, ServerError, ValkeyServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from guardrails._core.shadow import Mode

__all__ = [
    "InterruptedRunError",
    "Interrupts",
    "Options",
    "Screen",
    "ServerError",
    "StageError",
    "UnreachableError",
    "async_url",
    "perform",
]

_LOOK_EVERY = 0.5
_LEFT_RUNNING_AFTER = 1.0
_LEAD_IN = 0.2
_LAST_LOOK = 5.0


class Screen(Protocol):
    """The output that a user watches."""

    def say(self, line: str) -> None:
        """Shows one line before or after the load."""

    def show(self, run: Run, now: float) -> None:
        """Shows the state ``now`` seconds into the load; called twice a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The settings of a run.

    Attributes:
        scenario: The scenario to run.
        seconds: Time in which users arrive.
        seed: Seed of the arrivals and the jitter.
        database_url: A PostgreSQL of the user's own; None for a private one.
        compartments: ``"declared"``, ``"auto"`` or ``"none"``.
        mode: The mode of the guarded app's guards.
    """

    scenario: Scenario
    seconds: int
    seed: int
    database_url: str | None = None
    compartments: str = "declared"
    mode: Mode = "enforce"

    @property
    def command(self) -> str:
        """The command that repeats this run, without the URL and without names of files."""
        words = f"--scenario {self.scenario.name} --seconds {self.seconds} --seed {self.seed}"
        words += f" --compartments {self.compartments} --mode {self.mode}"
        return f"guardrails demo {words}" + (" --database-url ..." if self.database_url else "")


def perform(options: Options, screen: Screen, interrupts: Interrupts) -> Run:
    """Starts everything, runs the scenario, stops everything.

    Args:
        options: The settings.
        screen: The output.
        interrupts: Entered by the caller; a signal that came before ends the run, too.

    Raises:
        ImportError: A package of the demo extra is missing.
        InterruptedRunError: SIGINT, SIGTERM or SIGHUP came.
        UnreachableError: The database cannot be used.
        ServerError, StageError: A server or an app did not start or died.
    """
    require_packages(database=options.database_url is None)
    allow_many_sockets()
    interrupts.check()
    try:
        return _perform(options, screen, interrupts)
    except (ServerError, StageError):
        # A child that is starting while a signal reaches the whole group dies of the signal, too.
        interrupts.check()
        raise


def _perform(options: Options, screen: Screen, interrupts: Interrupts) -> Run:
    with ExitStack() as stack:
        database = Database(async_url(options.database_url or _private_database(stack, interrupts, screen)))
        cache = _private_cache(stack, interrupts, screen)
        if options.database_url:
            screen.say(f"using the PostgreSQL at {place(database.url)}, schema {database.schema}")
        try:
            return interrupts.run(_play(options, database, cache, screen))
        except (BaseExceptionGroup, aiohttp.ClientError, OSError, SQLAlchemyError) as error:
            raise _as_user_error(error, database) from None


def _as_user_error(error: BaseException, database: Database) -> BaseException:
    """Turns an error in the middle of a run into one that a user can act on."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]  # the other errors of a task group follow from the first
    if isinstance(error, (aiohttp.ClientError, TimeoutError)):
        return StageError("an app did not answer the demo's own question in time")
    if isinstance(error, (OSError, SQLAlchemyError)):
        return UnreachableError(f"the database at {place(database.url)} was lost: {reason(error)}")
    return error


def _private_database(stack: ExitStack, interrupts: Interrupts, screen: Screen) -> str:
    began = time.monotonic()
    postgres = stack.enter_context(PostgresServer.start())
    screen.say(f"postgres ready on port {postgres.port} after {time.monotonic() - began:.1f} s")
    interrupts.check()
    # The server has no TLS; asking it for TLS would cost either twin 5 ms for each new connection.
    return postgres.url("asyncpg") + "?ssl=disable"


def _private_cache(stack: ExitStack, interrupts: Interrupts, screen: Screen) -> ValkeyServer:
    began = time.monotonic()
    valkey = stack.enter_context(ValkeyServer.start())
    screen.say(f"valkey ready on port {valkey.port} after {time.monotonic() - began:.1f} s")
    interrupts.check()
    with Redis(port=valkey.port) as client:  # as the shop's other job would
        client.mset({f"price:{number}": number % 100 for number in range(1, 1001)})
    return valkey


async def _play(options: Options, database: Database, cache: ValkeyServer, screen: Screen) -> Run:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(database.prepared())
        apps = [
            stack.enter_context(
                App.started(name, database, options.scenario, cache.port, options.compartments, options.mode)
            )
            for name in ("plain", "guarded")
        ]
        control = await stack.enter_async_context(_session())
        crowds = [await stack.enter_async_context(_session()) for _ in apps]
        for app in apps:
            await app.ready(control)
        screen.say(f"apps ready: plain {apps[0].address}  guarded {apps[1].address}")
        screen.say(f"watch the guarded app in a browser: {await apps[1].open_page(control)}")
        for app, crowd in zip(apps, crowds, strict=True):
            await _warm_up(app, crowd, options.scenario)
            await app.ask(control, "begin")
        return await _run_the_load(options, database, cache, screen, apps, control, crowds)


async def _run_the_load(
    options: Options,
    database: Database,
    cache: ValkeyServer,
    screen: Screen,
    apps: list[App],
    control: aiohttp.ClientSession,
    crowds: list[aiohttp.ClientSession],
) -> Run:
    scenario, seconds = options.scenario, options.seconds
    people = arrivals(scenario, seconds, options.seed)
    run = Run(scenario.name, seconds, options.seed, scenario.fault_starts, scenario.fault_ends, people)
    run.compartments, run.mode = options.compartments, options.mode
    run.origin = origin(options.command)
    meter = Meter(owns_database=options.database_url is None)
    epoch = time.monotonic() + _LEAD_IN

    def clock() -> float:
        return time.monotonic() - epoch

    clients = [
        Client(crowd, app.address, twin, clock, options.seed)
        for crowd, app, twin in zip(crowds, apps, run.twins, strict=True)
    ]
    with quiet_collector():
        async with asyncio.TaskGroup() as around:
            watch = around.create_task(_watch(run, apps, control, screen, clock, epoch))
            fault_task = around.create_task(_cause_fault(run, database, cache, apps, control, clock))
            measure = around.create_task(meter.watch())
            await send_all(people, clients, clock)
            await fault_task
            run.check = meter.check()
            measure.cancel()
            watch.cancel()
    await asyncio.sleep(_LEFT_RUNNING_AFTER)
    for app, twin in zip(apps, run.twins, strict=True):
        twin.queries_left_running = await database.queries_running(app.name)
        await app.look(control, twin, epoch, _LAST_LOOK)
    return run


async def _warm_up(app: App, crowd: aiohttp.ClientSession, scenario: Scenario) -> None:
    """Calls each endpoint a few times, so that imports and first connections are not measured."""

    async def call(path: str) -> None:
        async with crowd.get(app.address + path) as response:
            await response.read()

    for _ in range(5):
        for path in (scenario.main, BYSTANDER, NODB):
            await asyncio.gather(*[call(path) for _ in range(5)])


async def _cause_fault(
    run: Run,
    database: Database,
    cache: ValkeyServer,
    apps: list[App],
    control: aiohttp.ClientSession,
    clock: Callable[[], float],
) -> None:
    async def mend() -> None:
        await asyncio.gather(*[app.ask(control, "mend", _LAST_LOOK) for app in apps])

    await asyncio.sleep(run.fault_starts - clock())
    begins = clock()
    async with fault(run.scenario, database, cache, mend):
        run.fault_starts = begins
        await asyncio.sleep(run.fault_ends - clock())
        # The moment of the order, not of its completion: closing our own connection is no part of the fault.
        run.fault_ends = clock()


async def _watch(
    run: Run,
    apps: list[App],
    control: aiohttp.ClientSession,
    screen: Screen,
    clock: Callable[[], float],
    epoch: float,
) -> None:
    """Reads both twins twice a second and updates the screen, until it is cancelled."""
    beat = 0.0
    while True:
        await asyncio.sleep(beat - clock())
        for app in apps:
            app.check()
        await asyncio.gather(
            *[app.look(control, twin, epoch) for app, twin in zip(apps, run.twins, strict=True)]
        )
        screen.show(run, clock())
        beat = max(beat + _LOOK_EVERY, clock())


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None),
        cookie_jar=aiohttp.DummyCookieJar(),
    )
