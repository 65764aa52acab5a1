"""Calls that give something back: a lock, a message that was handled, watched keys.

A refused release keeps its lock until the lock expires, so that everybody else waits for it. As ``COMMIT``
and ``ROLLBACK`` of a guarded engine do, such a call passes the guard and has a little time of its own.

A pool is not told which command it lends a connection for. Where it would refuse, the command is read from
the frame of the redis-py function that asks. Depends on redis-py; must not import pools or guards.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import CodeType, FrameType
from typing import Any

import redis.asyncio
from redis.asyncio.client import Pipeline as AsyncPipeline
from redis.asyncio.lock import Lock as AsyncLock
from redis.client import Pipeline
from redis.commands.core import AsyncScript, Script
from redis.lock import Lock

__all__ = ["GIVING_BACK", "GRACE", "error_of_block", "gives_back", "giving_back", "is_marked", "remember"]

GRACE = 0.25
"""Seconds that such a call has at least."""

_marked: ContextVar[bool] = ContextVar("guardrails_giving_back", default=False)

_ALWAYS = frozenset({"DISCARD", "UNWATCH", "XACK", "XACKDEL"})

_WITH_SCRIPT = frozenset({"EVAL", "SCRIPT LOAD"})
_WITH_SHA = frozenset({"EVALSHA", "SCRIPT EXISTS"})

_LOADS = frozenset({"SCRIPT LOAD", "script load"})

GIVING_BACK = frozenset(
    spelling
    for name in _ALWAYS | _WITH_SCRIPT | _WITH_SHA
    for spelling in (name, name.lower(), name.encode(), name.lower().encode())
)
"""First words of commands that may give something back, as they may be spelt."""

_CALL = re.compile(rb"\bp?call\s*\(\s*(?:['\"](\w+)['\"])?")
_LOOKS = {b"GET", b"HGET", b"EXISTS", b"HEXISTS", b"TTL", b"PTTL", b"ZSCORE", b"SISMEMBER"}
_REMOVES = {b"DEL", b"UNLINK", b"HDEL", b"SREM", b"ZREM", b"LREM"}
_WAKES = {b"PUBLISH", b"LPUSH", b"RPUSH", b"EXPIRE", b"PEXPIRE"}
"""Commands of a script that releases a lock: it compares the token, removes the key, wakes those who wait."""

_MOST_SCRIPTS = 1000
_DEEPEST = 40


_Codes = dict[int, CodeType]
"""Functions by the ``id`` of their code, whose hash takes a microsecond each time."""


def _codes(*functions: Any) -> _Codes:
    # What traces commands wraps redis-py's functions, and need not leave a Python function behind.
    found = (getattr(inspect.unwrap(function), "__code__", None) for function in functions)
    return {id(code): code for code in found if code is not None}


_SENDS_ONE = _codes(
    redis.Redis._execute_command,  # noqa: SLF001 - there is no public place that all commands pass
    redis.asyncio.Redis.execute_command,
    Pipeline.immediate_execute_command,
    AsyncPipeline.immediate_execute_command,
)
_SENDS_MANY = _codes(Pipeline.execute, AsyncPipeline.execute)
_SENDS = _SENDS_ONE | _SENDS_MANY
_RUNS_SCRIPT = _codes(Script.__call__, AsyncScript.__call__)
_KNOWS_SCRIPTS = _RUNS_SCRIPT | _SENDS_MANY
_ENDS_BLOCK = _codes(Lock.__exit__, AsyncLock.__aexit__)


@contextmanager
def giving_back() -> Iterator[None]:
    """Marks the Redis calls in a block as ones that give something back.

    ::

        with giving_back():
            client.zrem("permits", token)

    They pass an open circuit, a full pool and a spent deadline, and have at least 0.25 s. The locks of
    redis-py, ``XACK``, and scripts that compare a token and remove a key are recognised without it.
    """
    token = _marked.set(True)
    try:
        yield
    finally:
        _marked.reset(token)


def is_marked() -> bool:
    """True if this code runs inside `giving_back`."""
    return _marked.get()


def gives_back(commands: Iterable[Sequence[Any]] | None = None) -> bool:
    """True if all of the commands only give something back.

    Args:
        commands: Their arguments; None reads those that the calling redis-py function is about to send.
    """
    if _marked.get():
        return True
    if commands is None:
        frame: FrameType | None = sys._getframe(2)  # noqa: SLF001 - documented, and the only way to look up
        if frame is None or id(frame.f_code) not in _SENDS_ONE:  # most refusals are of one command
            frame = _find(_SENDS, frame)
        if frame is None:
            return False
        if id(frame.f_code) in _SENDS_ONE:
            args: Any = frame.f_locals.get("args")
            return bool(args) and args[0] in GIVING_BACK and _gives_back(args)
        commands = [args for args, _ in frame.f_locals.get("stack", ())]
    sent = list(commands)
    return bool(sent) and all(map(_gives_back, sent))


def error_of_block() -> BaseException | None:
    """The error that a ``with lock:`` block is being left with, if its lock is being released just now."""
    frame = _find(_ENDS_BLOCK, sys._getframe(1))  # noqa: SLF001
    return None if frame is None else frame.f_locals.get("exc_value")


def _find(codes: _Codes, frame: FrameType | None) -> FrameType | None:
    for _ in range(_DEEPEST):
        if frame is None or id(frame.f_code) in codes:
            return frame
        frame = frame.f_back
    return None


def _gives_back(args: Sequence[Any]) -> bool:
    if not args or args[0] not in GIVING_BACK:
        return False
    name = (args[0].decode() if isinstance(args[0], bytes) else args[0]).upper()
    if name in _WITH_SCRIPT:
        return len(args) > 1 and _learn(args[1])
    if name in _WITH_SHA:
        return len(args) > 1 and all(map(_releases, args[1:] if name == "SCRIPT EXISTS" else args[1:2]))
    return True


_known: dict[str, bool] = {}
"""True if a script releases something, by its SHA1."""


def _releases(sha: Any) -> bool:
    sha = sha.decode() if isinstance(sha, bytes) else sha
    if sha not in _known:
        frame = _find(_KNOWS_SCRIPTS, sys._getframe(1))  # noqa: SLF001
        if frame is not None:
            caller = frame.f_locals["self"]
            for script in [caller] if id(frame.f_code) in _RUNS_SCRIPT else caller.scripts:
                _learn(script.script)
    return _known.get(sha, False)


def remember(args: Sequence[Any]) -> None:
    """Notes the script of a SCRIPT LOAD, which others then run by its SHA1."""
    if len(args) > 1 and args[0] in _LOADS:
        _learn(args[1])


def _learn(script: Any) -> bool:
    if not isinstance(script, str | bytes):
        return False
    text = script.encode() if isinstance(script, str) else script
    sha = hashlib.sha1(text, usedforsecurity=False).hexdigest()
    if sha not in _known:
        calls = {name.upper() for name in _CALL.findall(text)}
        if len(_known) >= _MOST_SCRIPTS:
            _known.clear()
        compares_and_removes = calls & _LOOKS and calls & _REMOVES
        _known[sha] = bool(compares_and_removes) and calls <= _LOOKS | _REMOVES | _WAKES
    return _known[sha]


_scripts: tuple[Callable[..., Any] | str, ...] = (Lock.LUA_RELEASE_SCRIPT, AsyncLock.LUA_RELEASE_SCRIPT)
for _script in _scripts:
    _learn(_script)
