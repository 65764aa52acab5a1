"""Imports a service, calls its factory, starts its lifespan and ends it, as a server would.

Depends on the standard library alone; must not judge the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from guardrails._util.checks import shown

__all__ = ["ServiceError", "load", "while_started"]

LIFESPAN_TIMEOUT = 30.0
"""Seconds that a lifespan may take to start, and to stop."""

T = TypeVar("T")


class ServiceError(Exception):
    """A service cannot be imported, made or started; the message names the place, and no secret."""


def load(where: str, *, factory: bool) -> object:
    """Imports an application.

    Args:
        where: ``MODULE:ATTR``.
        factory: True if the attribute is a function that makes the application.

    Raises:
        ServiceError: The service's modules or its factory raised something.
    """
    module, _, attribute = where.partition(":")
    sys.path.insert(0, "")  # as servers do
    with contextlib.redirect_stdout(sys.stderr):
        try:
            app: Any = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the service's modules may raise anything
            raise ServiceError(f"cannot be imported: {_place(error, where)}{_hint(error, module)}") from None
        if not factory:
            return app
        try:
            return app()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - likewise
            raise ServiceError(f"cannot be called as a factory: {_place(error)}") from None


def while_started(app: object, look: Callable[[], T]) -> tuple[T, str | None]:
    """Calls ``look`` while the lifespan of an ASGI application is on; other applications have no lifespan.

    Returns:
        The result of ``look``, and the problem at the end of the lifespan, or None.

    Raises:
        ServiceError: The lifespan did not start.
    """
    call = app if inspect.isfunction(app) else getattr(app, "__call__", None)  # noqa: B004 - as uvicorn asks
    if not inspect.iscoroutinefunction(call):
        return look(), None
    with contextlib.redirect_stdout(sys.stderr):
        return asyncio.run(_Lifespan(app).run(look))


class _Lifespan:
    """One lifespan of an ASGI application, from the server's side."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._requests: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self._answers: asyncio.Queue[str] = asyncio.Queue()

    async def run(self, look: Callable[[], T]) -> tuple[T, str | None]:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
        task = asyncio.ensure_future(self._app(scope, self._requests.get, self._send))
        try:
            answer = await self._request("startup", task)
            if answer not in {"lifespan.startup.complete", None}:
                raise ServiceError(f"cannot be started: {self._problem(task)}")
            seen = look()
            if answer is None:  # the application has no lifespan
                return seen, None
            answer = await self._request("shutdown", task)
            problem = None if answer == "lifespan.shutdown.complete" else self._problem(task)
            return seen, problem
        finally:
            task.cancel()
            await asyncio.gather(
                task, return_exceptions=True
            )  # its error is reported above, or is the cancellation

    async def _send(self, message: dict[str, Any]) -> None:
        self._answers.put_nowait(message["type"])

    async def _request(self, what: str, task: asyncio.Future[Any]) -> str | None:
        """Sends an event; returns the answer, None if the application ends without one, "" if it is late."""
        self._requests.put_nowait({"type": f"lifespan.{what}"})
        answer = asyncio.ensure_future(self._answers.get())
        try:
            await asyncio.wait({answer, task}, timeout=LIFESPAN_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
            if answer.done() or not self._answers.empty():
                # An application that reports a failure raises its cause right afterwards.
                await asyncio.wait({task}, timeout=0.1 if (await answer).endswith("failed") else 0)
                return answer.result()
            return None if task.done() else ""
        finally:
            answer.cancel()

    def _problem(self, task: asyncio.Future[Any]) -> str:
        if task.done() and not task.cancelled() and (error := task.exception()):
            return _place(error)
        return (
            "it says that it failed"
            if task.done()
            else f"its lifespan takes more than {LIFESPAN_TIMEOUT:g} s"
        )


def _hint(error: BaseException, module: str) -> str:
    """Advice for a module of the service's own that is not found."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing is None or not f"{module}.".startswith(f"{missing}."):
        return ""
    return ": there is no such module here; run it in the folder in which the service is started"


def _place(error: BaseException, where: str = "") -> str:
    """Names the class of an error and its place in the service's own code.

    The error's message is left out, because it may hold an address with a password. Names of modules and
    attributes hold none; those in ``where`` are left out, because the caller prints them.
    """
    kind = type(error).__name__
    if isinstance(error, ImportError | AttributeError) and error.name and error.name not in where:
        kind += f", {'no module' if isinstance(error, ImportError) else 'no attribute'} {shown(error.name)}"
    if isinstance(error, SyntaxError):
        return f"{kind} in line {error.lineno} of {_relative(error.filename or '?')}"
    frames = [
        (frame, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if _is_own(frame.f_code.co_filename)
    ]
    if not frames:
        return kind
    frame, line = frames[-1]
    code, module = frame.f_code, frame.f_globals.get("__name__", "?")
    return f"{kind} in {code.co_name}, line {line} of {_relative(code.co_filename)} (module {module})"


_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def _is_own(file: str) -> bool:
    return not file.startswith((*_LIBRARIES, "<")) and Path(file) != Path(__file__)


def _relative(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
