"""Source positions of callers: where they asked for a connection, and where they are now.

A position is code and an offset, never a frame, because a frame keeps all its local variables alive. Files
and lines are looked up only when they are read, because the stack is walked at each checkout.

Depends on frames only; must not import a pool.
"""

from __future__ import annotations

import asyncio
import os
import pathlib
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import BuiltinFunctionType, CodeType, FrameType
from typing import Any

from guardrails._pool.application_code import DRIVERS, STDLIB, is_framework, package_of
from guardrails._util.interpreter import has_gil

__all__ = [
    "Caller",
    "Site",
    "callers",
    "in_driver",
    "lines",
    "site",
    "site_outside",
    "stack_of",
]

Site = tuple[tuple[CodeType, int], ...]
"""Code objects with offsets, the innermost first."""

Caller = int | weakref.ref[Any]
"""A thread, by its number; or an asyncio task or a greenlet, such as gevent's."""

_DEPTH = 3
"""Number of the application's frames that are kept: the line that asked, and its callers."""

_FARTHEST = range(80)
"""Frames that are searched for them. Frameworks use up to fifty."""

_MOST_CODES = 4096

_TYPED_IN = ("<stdin>", "<string>")
"""The names of code without a file. It is the application's if nothing else calls."""

_HIDDEN: list[tuple[CodeType, int]] = []
"""The frames of a caller that cannot be read."""

_framework: set[int] = set()
_own: set[int] = set()
"""Results of `is_framework` by the code's ``id``, because the hash of a code object is slow."""

_seen: list[CodeType] = []
"""The code objects of those results, which must live as long as their ``id`` is stored."""


def callers(*, is_async: bool) -> Callable[[], Caller]:
    """Returns the function that identifies the caller, for code in tasks or in threads."""
    if is_async:
        return _this_task
    # gevent replaces get_ident; a thread then runs many callers.
    return threading.get_ident if isinstance(threading.get_ident, BuiltinFunctionType) else _this_greenlet


def site(frame: FrameType) -> Site:
    """The application's own frames from this one outwards; empty if only frameworks and servers call."""
    found: list[tuple[CodeType, int]] = []
    framework, own, outer, left = _framework, _own, frame, _DEPTH
    at: FrameType | None = frame
    for _ in _FARTHEST:
        if at is None:
            break
        outer, code = at, at.f_code
        number = id(code)
        if number not in framework and (number in own or not _look_at(code)):
            found.append((code, at.f_lasti))
            left -= 1
            if not left:
                break
        at = at.f_back
    if not found and outer.f_code.co_filename in _TYPED_IN:
        return ((outer.f_code, outer.f_lasti),)
    return tuple(found)


def site_outside(frame: FrameType) -> Site:
    """As `site`, from inside SQLAlchemy's asyncio greenlet: the awaiting code is outside of it."""
    greenlet = _greenlet()
    around = None if greenlet is None or greenlet.parent is None else greenlet.parent.gr_frame
    return site(frame if around is None else around)


def stack_of(caller: Caller, otherwise: Site) -> Site | None:
    """The application's frames of a caller now, the innermost first; None if it has ended.

    Without the interpreter lock the frames of another running thread must not be read: that may crash the
    interpreter.

    Args:
        caller: The caller.
        otherwise: Returned where its frames cannot be read.
    """
    frames = _frames_of(caller)
    if frames is _HIDDEN:
        return otherwise
    return None if frames is None else tuple(_owned(frames))


def in_driver(caller: Caller) -> bool:
    """True if a caller runs Python code of a database driver now."""
    frames = _frames_of(caller)
    files = () if frames is None else (code.co_filename for code, _ in frames)
    innermost = next((file for file in files if not file.startswith(STDLIB)), "")
    return package_of(innermost) in DRIVERS


def _frames_of(caller: Caller) -> Iterable[tuple[CodeType, int]] | None:  # noqa: PLR0911 - a kind each
    """All frames of a caller now, the innermost first; None if it has ended."""
    if isinstance(caller, int):
        frame = sys._current_frames().get(caller)  # noqa: SLF001 - documented
        if frame is None:
            return None
        return _outwards(frame) if has_gil() or caller == threading.get_ident() else _HIDDEN
    running = caller()
    if running is None:
        return None
    if running is _current_task() or running is _greenlet():
        return _outwards(sys._getframe())  # noqa: SLF001 - likewise
    if isinstance(running, asyncio.Future):
        task: Any = running
        if task.done():
            return None
        here = has_gil() or task.get_loop() is asyncio._get_running_loop()  # noqa: SLF001 - likewise
        return reversed([*_inwards(task.get_coro())]) if here else _HIDDEN
    return None if running.dead else _outwards(running.gr_frame)


def lines(where: Site) -> tuple[str, ...]:
    """The frames as text, such as ``"shop/orders.py:42 in Orders.load"``."""
    return tuple(f"{_short(code.co_filename)}:{_line(code, at)} in {code.co_qualname}" for code, at in where)


def _current_task() -> asyncio.Task[Any] | None:
    return None if asyncio._get_running_loop() is None else asyncio.current_task()  # noqa: SLF001 - documented


def _greenlet() -> Any:
    module = sys.modules.get("greenlet")
    return None if module is None else module.getcurrent()


def _outwards(frame: FrameType | None) -> Iterator[tuple[CodeType, int]]:
    while frame is not None:
        yield frame.f_code, frame.f_lasti
        frame = frame.f_back


def _inwards(waiting: Any) -> Iterator[tuple[CodeType, int]]:
    """The frames of a suspended task: its coroutine, the one that it awaits, and so on."""
    for _ in _FARTHEST:
        frame = next(
            (
                getattr(waiting, name)
                for name in ("cr_frame", "gi_frame", "ag_frame")
                if hasattr(waiting, name)
            ),
            None,
        )
        if frame is None:
            return
        yield frame.f_code, frame.f_lasti
        waiting = next(
            (
                getattr(waiting, name)
                for name in ("cr_await", "gi_yieldfrom", "ag_await")
                if hasattr(waiting, name)
            ),
            None,
        )


def _this_task() -> Caller:
    task = _current_task()
    return threading.get_ident() if task is None else weakref.ref(task)


def _this_greenlet() -> Caller:
    greenlet = _greenlet()
    return threading.get_ident() if greenlet is None else weakref.ref(greenlet)


def _owned(frames: Iterable[tuple[CodeType, int]]) -> Iterator[tuple[CodeType, int]]:
    return ((code, at) for code, at in frames if not is_framework(code.co_filename))


def _look_at(code: CodeType) -> bool:
    verdict = is_framework(code.co_filename)
    if len(_seen) < _MOST_CODES:  # an application may create code without end
        _seen.append(code)
        (_framework if verdict else _own).add(id(code))
    return verdict


def _short(filename: str) -> str:
    """The file's path below its import folder, which is the same in each installation."""
    folders = [folder.rstrip(os.sep) + os.sep for folder in sys.path if folder]
    below = [filename[len(folder) :] for folder in folders if filename.startswith(folder)]
    return min(below, key=len, default="/".join(pathlib.Path(filename).parts[-2:]))


def _line(code: CodeType, at: int) -> int:
    for start, end, line in code.co_lines():
        if start <= at < end and line is not None:
            return line
    return code.co_firstlineno
