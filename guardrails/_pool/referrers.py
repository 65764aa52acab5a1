"""Finds the code that keeps an object alive: suspended generators or coroutines, or running frames.

It scans all objects of the process once for each step, so it is only for a diagnosis, never for a call.

Depends on the garbage collector; must not import a pool.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from types import AsyncGeneratorType, CoroutineType, FrameType, FunctionType, GeneratorType, ModuleType
from typing import Any

from guardrails._pool.application_code import is_framework
from guardrails._pool.frames import Site
from guardrails._util.interpreter import has_gil

__all__ = ["referrers"]

_FARTHEST = range(12)
"""Steps from a connection outwards: SQLAlchemy's Session is five away, a framework's exit stack four more."""

_MOST_OBJECTS = 2_000

_CONTAINERS = (dict, list, set, frozenset, tuple)
"""A local variable of these types is no holder: connections in a list are often leaked."""


def referrers(things: Sequence[object], mine: Collection[int] = ()) -> list[Site | None]:
    """Finds for each object the code that keeps it alive, as one frame; None if there is none.

    A frame of the application has priority over one of a framework. Running code that asks for this list does
    not count as a holder of other callers' objects.

    Args:
        things: The objects.
        mine: The indexes of those that the caller's own thread or task asked for.
    """
    found: list[Site | None] = [None] * len(things)
    own: set[int] = set()
    reach = {id(thing): {index} for index, thing in enumerate(things)}
    alive: list[object] = list(things)
    level: list[object] = list(things)
    for _ in _FARTHEST:
        outer: list[object] = []
        for each in gc.get_referrers(*level):
            if each is level or each is alive or each is things or id(each) in reach or _is_dead_end(each):
                continue
            behind = set[int]().union(*(reach.get(id(inner), ()) for inner in gc.get_referents(each)))
            frame = _suspended(each)
            if frame is not None:
                _note(found, own, behind.intersection(mine) if _runs(each) else behind, frame)
            elif _suspended_kind(each) is None:
                reach[id(each)] = behind
                outer.append(each)
        if not outer or len(own) == len(things) or len(alive) > _MOST_OBJECTS:
            break
        alive += outer  # or another object could get the id of a freed one
        level = outer
    for frame, here in _running():
        for value in list(frame.f_locals.values()):
            if id(value) in reach and not isinstance(value, _CONTAINERS):
                behind = reach[id(value)]
                _note(found, own, behind.intersection(mine) if here else behind, frame)
    return found


def _note(found: list[Site | None], own: set[int], behind: Iterable[int], frame: FrameType) -> None:
    ours = not is_framework(frame.f_code.co_filename)
    for index in behind:
        if index not in own and (ours or found[index] is None):
            found[index] = ((frame.f_code, frame.f_lasti),)
            if ours:
                own.add(index)


_SUSPENDED = {GeneratorType: "gi_frame", CoroutineType: "cr_frame", AsyncGeneratorType: "ag_frame"}


def _suspended_kind(each: object) -> str | None:
    return _SUSPENDED.get(type(each))


def _suspended(each: object) -> FrameType | None:
    """The frame of a generator or coroutine that has not ended."""
    kind = _suspended_kind(each)
    frame: FrameType | None = None if kind is None else getattr(each, kind)
    return frame


def _runs(each: Any) -> bool:
    """True if a generator or coroutine is not suspended."""
    return any(getattr(each, name, False) for name in ("gi_running", "cr_running", "ag_running"))


def _is_dead_end(each: Any) -> bool:
    """True for objects that refer to much that they do not hold: modules, functions, classes, frames."""
    if isinstance(each, ModuleType | FunctionType | FrameType | type):
        return True
    return type(each) is dict and "__builtins__" in each


def _running() -> Iterator[tuple[FrameType, bool]]:
    """The application's running frames in all threads, each with True if it is the caller's thread.

    Without the interpreter lock only the caller's thread is read: the others run meanwhile.
    """
    for thread, frame in sys._current_frames().items():  # noqa: SLF001 - documented
        if thread != threading.get_ident() and not has_gil():
            continue
        at: FrameType | None = frame
        while at is not None:
            if not is_framework(at.f_code.co_filename):
                yield at, thread == threading.get_ident()
            at = at.f_back
