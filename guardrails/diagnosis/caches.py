"""Reads INFO and SLOWLOG of Redis and Valkey, and judges them. Depends on redis-py.

It shows no key and no argument of a command.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthorizationError
from redis.retry import Retry

from guardrails.diagnosis.asking import ANSWER_TIMEOUT, CONNECT_TIMEOUT, refusal, within, words
from guardrails.diagnosis.findings import Finding, limit_reached

__all__ = ["ask", "why_not"]

_FULL = 0.95
"""The share of its memory from which a server counts as full."""

_RECENT = 600.0
"""Age in seconds up to which a slow command is reported."""

_SHOWN = 5


def ask(url: str, slow: float) -> tuple[str, list[Finding], tuple[str, ...]]:
    """Reads the product, the findings and the unseen parts of the server of a URL.

    Args:
        url: As for ``redis.Redis.from_url``.
        slow: Seconds from which a command is slow.

    Raises:
        ValueError: The URL is invalid.
        TimeoutError: There was no answer in time.
        RedisError: The server could not be reached, or refused this user.
    """
    limits = {"socket_timeout": CONNECT_TIMEOUT, "socket_connect_timeout": CONNECT_TIMEOUT}
    client = redis.Redis.from_url(url, max_connections=1, retry=Retry(NoBackoff(), 0), **limits)

    def question() -> tuple[str, list[Finding], tuple[str, ...]]:
        with client:
            info: dict[str, Any] = client.info()
            unseen: tuple[str, ...] = ()
            slowlog: list[dict[str, Any]] = []
            try:
                slowlog = client.slowlog_get(128)
            except redis.ResponseError:  # NOPERM, or a service without SLOWLOG
                unseen = ("slow commands: that takes the right to SLOWLOG GET",)
        product = "Valkey" if "valkey_version" in info else "Redis"
        return product, [*_of_info(info), *_of_slowlog(slowlog, slow)], unseen

    return within(ANSWER_TIMEOUT, question)


def why_not(error: Exception, url: str) -> Finding:
    """Makes a finding of an error of `ask`, in the driver's words without the URL's address and password."""
    parts = urlsplit(url)
    port = parts.port or 6379
    said = words(
        str(error), [parts.password, parts.hostname, port, parts.path if parts.scheme == "unix" else None]
    )
    crowded = "max number of clients" in said
    answered = isinstance(error, redis.AuthenticationError | redis.ResponseError | AuthorizationError)
    return refusal(said, answered=answered, crowded=crowded)


def _of_info(info: dict[str, Any]) -> Iterator[Finding]:
    if info.get("loading"):
        yield Finding("loading", "it is loading its data and answers no client", (), "wait; nothing to mend")
    yield from limit_reached(info["connected_clients"] - 1, info["maxclients"])
    used, most = info["used_memory"], info.get("maxmemory", 0)
    if most and used >= most * _FULL:
        yield Finding(
            "memory",
            f"memory in use: {used / most:.0%}, policy {info.get('maxmemory_policy', 'unknown')}",
            (),
            "with the policy noeviction writes fail from 100 % on: give keys a time to live, or more memory",
        )


def _of_slowlog(slowlog: list[dict[str, Any]], slow: float) -> Iterator[Finding]:
    since = time.time() - _RECENT
    entries = [each for each in slowlog if each["start_time"] >= since and each["duration"] >= slow * 1e6]
    if entries:
        entries.sort(key=lambda each: -each["duration"])
        yield Finding(
            "slow",
            f"commands of the last 10 minutes that took {slow:g} s or more: {len(entries)}",
            tuple(f"{_command(each)}, {each['duration'] / 1e6:.2f} s" for each in entries[:_SHOWN]),
            "everybody waits for such a command: ask for less at once, SCAN instead of KEYS",
        )


def _command(entry: dict[str, Any]) -> str:
    words = bytes(entry["command"]).split(maxsplit=1)
    return ascii(words[0].decode("latin-1").upper()) if words else "a command"
