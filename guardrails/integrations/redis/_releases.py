"""Recognises commands that only release something: a lock, a handled message, watched keys.

Depends on redis-py; must not import pools or guards. A refused release would keep its lock until the lock
expires, and every other caller would wait for it. So a release passes the guard and has a grace period, as
``COMMIT`` and ``ROLLBACK`` of a guarded engine have.

A pool does not learn which command it opens a connection for. When it would refuse, the command is read from
the frame of the redis-py function that asks.
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
import redis.asyncio.cluster
import redis.cluster
from redis.asyncio.client import Pipeline as AsyncPipeline
from redis.asyncio.lock import Lock as AsyncLock
from redis.client import Pipeline
from redis.commands.core import AsyncScript, Script
from redis.lock import Lock

__all__ = [
    "GRACE",
    "RELEASE_COMMANDS",
    "error_of_lock_block",
    "giving_back",
    "in_giving_back",
    "is_release",
    "remember_script",
]

GRACE = 0.25
"""Minimum time of a release in seconds."""

_marked: ContextVar[bool] = ContextVar("guardrails_giving_back", default=False)

_ALWAYS_RELEASE = frozenset({"DISCARD", "UNWATCH", "XACK", "XACKDEL"})

_WITH_SCRIPT = frozenset({"EVAL", "SCRIPT LOAD"})
_WITH_SHA = frozenset({"EVALSHA", "SCRIPT EXISTS"})

_LOAD_SCRIPT = frozenset({"SCRIPT LOAD", "script load"})

RELEASE_COMMANDS = frozenset(
    spelling
    for name in _ALWAYS_RELEASE | _WITH_SCRIPT | _WITH_SHA
    for spelling in (name, name.lower(), name.encode(), name.lower().encode())
)
"""First words of commands that may be releases, in the spellings that callers use."""

_CALL = re.compile(rb"\bp?call\s*\(\s*(?:['\"](\w+)['\"])?")
_READS = {b"GET", b"HGET", b"EXISTS", b"HEXISTS", b"TTL", b"PTTL", b"ZSCORE", b"SISMEMBER"}
_REMOVES = {b"DEL", b"UNLINK", b"HDEL", b"SREM", b"ZREM", b"LREM"}
_NOTIFIES = {b"PUBLISH", b"LPUSH", b"RPUSH", b"EXPIRE", b"PEXPIRE"}
"""Commands of a script that releases a lock: it compares the token, removes the key, notifies waiters."""

_MAX_SCRIPTS = 1000
_MAX_FRAMES = 40


_Codes = dict[int, CodeType]
"""Code objects by ``id``: hashing one takes a microsecond."""


def _codes(*functions: Any) -> _Codes:
    # Tracing tools wrap redis-py's functions, in objects that need not be Python functions.
    found = (getattr(inspect.unwrap(function), "__code__", None) for function in functions)
    return {id(code): code for code in found if code is not None}


_SENDS_ONE = _codes(
    redis.Redis._execute_command,  # noqa: SLF001 - there is no public place that all commands pass
    redis.asyncio.Redis.execute_command,
    Pipeline.immediate_execute_command,
    AsyncPipeline.immediate_execute_command,
    redis.cluster.RedisCluster._execute_command,  # noqa: SLF001
    redis.asyncio.cluster.ClusterNode.execute_command,
)
_SENDS_MANY = _codes(Pipeline.execute, AsyncPipeline.execute)
_SENDS = _SENDS_ONE | _SENDS_MANY
_RUNS_SCRIPT = _codes(Script.__call__, AsyncScript.__call__)
_KNOWS_SCRIPTS = _RUNS_SCRIPT | _SENDS_MANY
_ENDS_BLOCK = _codes(Lock.__exit__, AsyncLock.__aexit__)


@contextmanager
def giving_back() -> Iterator[None]:
    """Marks the Redis calls in a block as releases.

    ::

        with giving_back():
            client.zrem("permits", token)

    A release passes an open circuit, a full pool and a spent deadline, and has at least 0.25 s. The locks of
    redis-py, ``XACK``, and scripts that compare a token and remove a key are recognised without this mark.
    """
    token = _marked.set(True)
    try:
        yield
    finally:
        _marked.reset(token)


def in_giving_back() -> bool:
    """Returns True if this code runs inside `giving_back`."""
    return _marked.get()


def is_release(commands: Iterable[Sequence[Any]] | None = None) -> bool:
    """Returns True if all of the commands are releases.

    Args:
        commands: The arguments of each; None reads those that the calling redis-py function will send.
    """
    if _marked.get():
        return True
    if commands is None:
        frame: FrameType | None = sys._getframe(2)  # noqa: SLF001 - documented, and the only way
        if frame is None or id(frame.f_code) not in _SENDS_ONE:  # most refusals are for a single command
            frame = _find(_SENDS, frame)
        if frame is None:
            return False
        if id(frame.f_code) in _SENDS_ONE:
            args: Any = frame.f_locals.get("args")
            return bool(args) and args[0] in RELEASE_COMMANDS and _is_release(args)
        commands = [args for args, _ in frame.f_locals.get("stack", ())]
    sent = list(commands)
    return bool(sent) and all(map(_is_release, sent))


def error_of_lock_block() -> BaseException | None:
    """Returns the error that ends a ``with lock:`` block whose lock is being released; None without one."""
    frame = _find(_ENDS_BLOCK, sys._getframe(1))  # noqa: SLF001
    return None if frame is None else frame.f_locals.get("exc_value")


def _find(codes: _Codes, frame: FrameType | None) -> FrameType | None:
    for _ in range(_MAX_FRAMES):
        if frame is None or id(frame.f_code) in codes:
            return frame
        frame = frame.f_back
    return None


def _is_release(args: Sequence[Any]) -> bool:
    if not args or args[0] not in RELEASE_COMMANDS:
        return False
    name = (args[0].decode() if isinstance(args[0], bytes) else args[0]).upper()
    if name in _WITH_SCRIPT:
        return len(args) > 1 and _classify_script(args[1])
    if name in _WITH_SHA:
        scripts = args[1:] if name == "SCRIPT EXISTS" else args[1:2]
        return len(args) > 1 and all(map(_script_releases, scripts))
    return True


_verdicts: dict[str, bool] = {}
"""True for a script that is a release, by its SHA1."""


def _script_releases(sha: Any) -> bool:
    sha = sha.decode() if isinstance(sha, bytes) else sha
    if sha not in _verdicts:
        frame = _find(_KNOWS_SCRIPTS, sys._getframe(1))  # noqa: SLF001
        if frame is not None:
            caller = frame.f_locals["self"]
            for script in [caller] if id(frame.f_code) in _RUNS_SCRIPT else caller.scripts:
                _classify_script(script.script)
    return _verdicts.get(sha, False)


def remember_script(args: Sequence[Any]) -> None:
    """Classifies the script of a SCRIPT LOAD, which callers then run by its SHA1."""
    if len(args) > 1 and args[0] in _LOAD_SCRIPT:
        _classify_script(args[1])


def _classify_script(script: Any) -> bool:
    if not isinstance(script, str | bytes):
        return False
    text = script.encode() if isinstance(script, str) else script
    sha = hashlib.sha1(text, usedforsecurity=False).hexdigest()
    if sha not in _verdicts:
        calls = {name.upper() for name in _CALL.findall(text)}
        if len(_verdicts) >= _MAX_SCRIPTS:
            _verdicts.clear()
        compares_and_removes = calls & _READS and calls & _REMOVES
        _verdicts[sha] = bool(compares_and_removes) and calls <= _READS | _REMOVES | _NOTIFIES
    return _verdicts[sha]


_scripts: tuple[Callable[..., Any] | str, ...] = (Lock.LUA_RELEASE_SCRIPT, AsyncLock.LUA_RELEASE_SCRIPT)
for _script in _scripts:
    _classify_script(_script)
