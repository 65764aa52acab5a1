"""Asks Redis and Valkey how they are. Knows INFO and SLOWLOG; no key and no argument of a command."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import redis

from guardrails import protect
from guardrails.diagnosis.findings import Finding, limit_reached

__all__ = ["ask"]

_PATIENCE = 5.0
"""Seconds that connecting, and each question, may take."""

_FULL = 0.95
"""The share of its memory from which on a server is called full."""

_RECENT = 600.0
"""Seconds for which a slow command is told."""

_SHOWN = 5


def ask(url: str, slow: float) -> tuple[str, list[Finding]]:
    """Asks the server of a URL what it is and what is wrong with it.

    Args:
        url: As for ``redis.Redis.from_url``.
        slow: Seconds from which on a command is long.

    Raises:
        ValueError: It is no such URL.
        GuardrailsError: There was no answer in time.
        RedisError: It could not be reached, or does not answer this user.
    """
    client = redis.Redis.from_url(url, max_connections=1)
    guard = protect(client, timeout=_PATIENCE, breaker=None)
    try:
        info: dict[str, Any] = client.info()
        slowlog: list[dict[str, Any]] = client.slowlog_get(128)
    finally:
        guard.detach()
        client.close()
    product = "Valkey" if "valkey_version" in info else "Redis"
    return product, [*_of_info(info), *_of_slowlog(slowlog, slow)]


def _of_info(info: dict[str, Any]) -> Iterator[Finding]:
    if info.get("loading"):
        yield Finding("loading", "it is reading its data in and answers nobody", (), "wait; nothing to mend")
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
