"""One of the two twins, in a process of its own: the shop under uvicorn, with a monitor around it.

Depends on the shop's source, with or without its guarded lines; must not know the scenario.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
    App = Callable[[Scope, Receive, Send], Awaitable[None]]

__all__ = ["difference", "main", "shop_source"]

_MARK = "  # guardrails"
_DECLARED = ", declared"
_UNDECLARED = {
    "none": {"guarded, protect": "protect", 'name="db")': 'name="db", compartments="none")'},
    "auto": {"guarded, protect": "protect", 'name="db")': 'name="db", compartments="auto")'},
}
"""Replacements in the marked lines where no compartment is declared."""

_LOOK_EVERY = 0.02

_LEAKED_FOR = 1.0
"""Seconds. A request that ends at this moment looks like a leak for less."""


def shop_source(*, guarded: bool, compartments: str = "declared") -> str:
    """Returns the shop's source; the plain one lacks exactly the marked lines.

    Args:
        guarded: True for the source with the marked lines.
        compartments: ``"declared"``, ``"auto"`` or ``"none"``.
    """
    return "\n".join(line for line in _lines(compartments) if guarded or not line.endswith(_MARK)) + "\n"


def difference(compartments: str = "declared") -> list[tuple[bool, str]]:
    """Returns the marked lines (True), and the lines that their decorators belong to (False)."""
    shown: list[tuple[bool, str]] = []
    lines = _lines(compartments)
    for index, line in enumerate(lines):
        if line.startswith("class ") and any(one.endswith(_MARK) for one in lines[index : index + 4]):
            shown.append((False, line))
        elif line.endswith(_MARK):
            shown.append((True, line.removesuffix(_MARK)))
        elif lines[index - 1].startswith("    @") and lines[index - 1].endswith(_MARK):
            shown.append((False, line))
    return shown


def _lines(compartments: str) -> list[str]:
    lines = Path(__file__).with_name("shop.py").read_text(encoding="utf-8").splitlines()
    if compartments == "declared":
        return [line.removesuffix(_DECLARED) if line.endswith(_MARK + _DECLARED) else line for line in lines]
    lines = [line for line in lines if not line.endswith(_MARK + _DECLARED)]
    for ours, theirs in _UNDECLARED[compartments].items():
        lines = [line.replace(ours, theirs) if line.endswith(_MARK) else line for line in lines]
    return lines


class Monitor:
    """Counts the requests of a twin and reports to the demo.

    It counts requests around the whole application, reads the pool's own number of connections in use at each
    checkout, and reads the guards' states every 20 ms without changing them.
    """

    def __init__(self, shop: dict[str, Any]) -> None:
        self._app: App = shop["app"]
        self._engine = shop["engine"]
        self._forgotten = shop["forgotten"]
        self._roots = [shop[name] for name in ("db", "prices") if name in shop]
        self._pages = _status_pages(self._roots) if self._roots else None
        self._in_flight = self._max_in_flight = self._at_database = self._max_checked_out = 0
        self._mended = False
        self._changes: list[tuple[float, str, str, str]] = []
        self._states = {name: guard.state for name, guard in self._guards().items()}
        self._listen_to_pool()

    def _guards(self) -> dict[str, Any]:
        """Returns the guards and their present compartments."""
        return {guard.name: guard for root in self._roots for guard in (root, *root.compartments)}

    def _listen_to_pool(self) -> None:
        from sqlalchemy import event  # noqa: PLC0415 - the parent reads this module without SQLAlchemy

        def checked_out(*_: object) -> None:
            self._max_checked_out = max(self._max_checked_out, self._engine.pool.checkedout())

        event.listen(self._engine.sync_engine, "checkout", checked_out)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"].startswith("/_demo/"):
            await self._answer(scope["path"], send)
        elif self._pages is not None and scope["path"].startswith("/internal"):
            await self._pages(scope, receive, send)  # beside the shop: a look at them is no request of a user
        else:
            await self._count(scope, receive, send)

    async def _count(self, scope: Scope, receive: Receive, send: Send) -> None:
        at_database = int(scope["path"] != "/ping")
        self._in_flight += 1
        self._at_database += at_database
        self._max_in_flight = max(self._max_in_flight, self._in_flight)
        try:
            await self._app(scope, receive, send)
        finally:
            self._in_flight -= 1
            self._at_database -= at_database

    async def _answer(self, path: str, send: Send) -> None:
        if path == "/_demo/mend":
            self._mended = True
        elif path == "/_demo/begin":
            self._max_in_flight = self._in_flight
            self._max_checked_out = self._engine.pool.checkedout()
        body = json.dumps(self._report()).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _report(self) -> dict[str, Any]:
        checked_out = self._engine.pool.checkedout()
        return {
            "in_flight": self._in_flight,
            "max_in_flight": self._max_in_flight,
            "checked_out": checked_out,
            "max_checked_out": self._max_checked_out,
            "waiting": max(0, self._at_database - checked_out),
            "guards": {name: _state_of(guard.snapshot()) for name, guard in self._guards().items()},
            "roots": self._sums_of_roots(),
            "changes": self._changes,
            "pool": self._pool(),
        }

    def _sums_of_roots(self) -> list[dict[str, Any]]:
        """Returns what each guard with its compartments would have done, as on a status page."""
        if not self._roots:
            return []
        from guardrails._guard.shadow_report import shadow_report  # noqa: PLC0415 - the plain one has no guard

        return [{"name": root.name, "mode": root.mode, "shadow": shadow_report(root)} for root in self._roots]

    def _pool(self) -> dict[str, Any] | None:
        """Returns what the guarded twin knows about its pool; None for the plain one."""
        if not self._roots:
            return None
        from guardrails.integrations.sqlalchemy import pool_status  # noqa: PLC0415 - as SQLAlchemy above

        status = pool_status(self._engine)
        return {
            "words": str(status),
            "wanted": status.checked_out + status.waiting,
            "cause": next(map(str, status.lock_waits), None) or _leak(status.holders),
        }

    async def watch(self) -> None:
        """Records each change of a guard's state, to within 20 ms, for as long as it runs."""
        while True:
            if self._mended:  # as if the fix were deployed: present and waiting callers leak no more
                kept, self._forgotten[:] = list(self._forgotten), []
                await asyncio.gather(*[connection.close() for connection in kept], return_exceptions=True)
            for name, guard in self._guards().items():
                before, self._states[name] = self._states.get(name, "closed"), guard.state
                if before != self._states[name]:
                    self._changes.append((time.monotonic(), name, before, self._states[name]))
            await asyncio.sleep(_LOOK_EVERY)


def _status_pages(guards: list[Any]) -> App:
    """Returns the status application at ``/internal``, as a service mounts it."""
    from starlette.applications import Starlette  # noqa: PLC0415 - as SQLAlchemy above
    from starlette.routing import Mount  # noqa: PLC0415

    from guardrails.integrations.starlette import status_app  # noqa: PLC0415

    return Starlette(routes=[Mount("/internal", status_app(guards))])


def _leak(holders: Iterable[Any]) -> str | None:
    """Returns a line about the connections that have been leaked for a second or more; None without any."""
    leaked = [each for each in holders if each.doing == "gone" and each.seconds >= _LEAKED_FOR]
    if not leaked:
        return None
    first = leaked[0]
    place = f"{len(leaked)} x {first.where[0]}, {first.route}"
    return f"{place}, held for up to {first.seconds:.1f} s: {first.advice}"


def _state_of(snapshot: Any) -> dict[str, Any]:
    names = ("state", "in_use", "max_concurrent_calls", "waiting", "admitted", "failed", "rejected")
    return {name: getattr(snapshot, name) for name in names}


def _leave_with_parent() -> None:
    # The demo holds the other end and never writes: the end of the stream means that it has died, or ends
    # this twin. Waiting for the requests in flight would take the plain twin half a minute. sys.stdin is not
    # used, because its lock would abort an interpreter that ends for another reason.
    while os.read(0, 1):
        pass
    os._exit(0)


async def _serve(listener: socket.socket, monitor: Monitor) -> None:
    import uvicorn  # noqa: PLC0415 - the parent reads this module for the guarded lines alone

    # uvicorn's defaults but for the log level: the plain twin would print thousands of tracebacks.
    server = uvicorn.Server(uvicorn.Config(monitor, log_level="critical", access_log=False))
    watching = asyncio.create_task(monitor.watch())
    try:
        await server.serve(sockets=[listener])
    finally:
        watching.cancel()


def main(descriptor: int, *, guarded: bool, compartments: str) -> None:
    """Serves the shop on an inherited listening socket until standard input ends.

    Args:
        descriptor: File descriptor of the listening socket.
        guarded: True for the program with the marked lines.
        compartments: See `shop_source`.
    """
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    shop: dict[str, Any] = {"__name__": "guardrails.demo.shop"}
    # Both twins run this source, so they differ in nothing but the marked lines.
    source = shop_source(guarded=guarded, compartments=compartments)
    exec(compile(source, "shop.py", "exec"), shop)  # noqa: S102 - our own file
    # Imported objects stay; collecting them again and again would be measured as latency.
    gc.freeze()
    with socket.socket(fileno=descriptor) as listener:
        asyncio.run(_serve(listener, Monitor(shop)))
