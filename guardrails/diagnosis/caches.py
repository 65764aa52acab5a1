"""Reads INFO and SLOWLOG of Redis and Valkey, and judges them. Depends on redis-py.

It shows no key and no argument of a command.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthorizationError
from redis.retry import Retry

from guardrails.diagnosis.asking import ANSWER_TIMEOUT, CONNECT_TIMEOUT, refusal, within, words
from guardrails.diagnosis.findings import Finding, limit_reached
from guardrails.diagnosis.tables import Table

__all__ = ["Answer", "ask", "why_not"]

_FULL = 0.95
"""The share of its memory from which a server counts as full."""

_RECENT = 600.0
"""Age in seconds up to which a slow command is reported."""

_SHOWN = 5


class Answer(NamedTuple):
    """The findings about a server.

    Attributes:
        product: Its name.
        findings: The faults.
        unseen: Facts hidden from this user, with the right that they require.
        tables: The tables behind the findings; empty unless they were asked for.
    """

    product: str
    findings: list[Finding]
    unseen: tuple[str, ...]
    tables: list[Table]


def ask(url: str, slow: float, *, tables: bool = False) -> Answer:
    """Reads what there is to say about the server of a URL.

    Args:
        url: As for ``redis.Redis.from_url``. A database in it limits the table of clients to it.
        slow: Seconds from which a command is slow.
        tables: Whether to make the tables, too.

    Raises:
        ValueError: The URL is invalid.
        TimeoutError: There was no answer in time.
        RedisError: The server could not be reached, or refused this user.
    """
    limits = {"socket_timeout": CONNECT_TIMEOUT, "socket_connect_timeout": CONNECT_TIMEOUT}
    client = redis.Redis.from_url(url, max_connections=1, retry=Retry(NoBackoff(), 0), **limits)

    def question() -> Answer:
        with client:
            info: dict[str, Any] = client.info()
            unseen: tuple[str, ...] = ()
            shown: list[Table] = []
            slowlog: list[dict[str, Any]] = []
            try:
                slowlog = client.slowlog_get(128)
            except redis.ResponseError:  # NOPERM, or a service without SLOWLOG
                unseen = ("slow commands: that takes the right to SLOWLOG GET",)
            if tables:
                try:
                    shown = _tables(client.client_list(), int(info["maxclients"]), _database_of(url))
                except redis.ResponseError:
                    unseen += ("clients: that takes the right to CLIENT LIST",)
        product = "Valkey" if "valkey_version" in info else "Redis"
        return Answer(product, [*_of_info(info), *_of_slowlog(slowlog, slow)], unseen, shown)

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


def _database_of(url: str) -> str | None:
    """Returns the number of the database that a URL names, or None."""
    parts = urlsplit(url)
    named = parse_qs(parts.query).get("db", [""])[0]
    return named or (parts.path.strip("/") if parts.scheme != "unix" else "") or None


def _tables(clients: list[dict[str, str]], limit: int, database: str | None) -> list[Table]:
    names = Counter(each.get("name") or each.get("user", "") for each in clients)
    within = [each for each in clients if database is None or each.get("db") == database]
    where = "" if database is None else f" of database {database!a}"
    return [
        Table(
            "applications",
            f"connections by name: {len(clients)} of {limit}",
            ("name", "connections", "share"),
            tuple((name, count, f"{count / limit:.0%}") for name, count in names.most_common()),
        ),
        Table(
            "sessions",
            f"clients{where}: {len(within)}",
            ("id", "database", "user", "application", "client", "seconds", "age", "command"),
            tuple(
                (
                    int(each["id"]),
                    each.get("db"),
                    each.get("user"),
                    each.get("name") or None,
                    each.get("addr", "").rpartition(":")[0] or None,
                    int(each.get("idle", 0)),
                    int(each.get("age", 0)),
                    each.get("cmd"),
                )
                for each in sorted(within, key=lambda each: int(each.get("idle", 0)))
            ),
        ),
    ]


def _command(entry: dict[str, Any]) -> str:
    words = bytes(entry["command"]).split(maxsplit=1)
    return ascii(words[0].decode("latin-1").upper()) if words else "a command"
