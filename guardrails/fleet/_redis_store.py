"""Leases in Redis or Valkey. Depends on redis-py and the records; ``lease.lua`` has the rule.

One call a second runs one script, whose time is the server's. The connection is the fleet's own, with short
timeouts and without retries: the worker asks again a second later.

The keys have the protocol's version in their names, so that two versions never read each other's texts. All
keys of a fleet have one hash tag. The members of a budget are in `_SHARDS` hashes, so that no call reads all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha1
from pathlib import Path
from typing import Any, cast
from zlib import crc32

from guardrails.errors import ConfigurationError
from guardrails.fleet import _lease_sums, _orders, _records, _rulings, _verdict
from guardrails.fleet._orders import Orders, OrdersRequest
from guardrails.fleet._records import EPOCH, Reply
from guardrails.fleet._rulings import Ruling, VerdictRequest
from guardrails.fleet._sentinel_url import SCHEMES, client_of
from guardrails.fleet._stores import Answer, Ask, StoreError, StoreView

__all__ = ["SCRIPT", "RedisStore"]

_TIMEOUT = 0.5
"""Seconds for a connect, and for a reply."""

_SHARDS = 32
"""Number of hashes that the members of one budget are divided into, by their names."""

_WIDTH = 16
"""Number of words of a question to the script."""


def _lua_sets(sets: Mapping[str, Iterable[str]]) -> str:
    """Returns sets of words by name, as an expression of Lua."""
    words = {name: ", ".join(f"{word} = true" for word in each) for name, each in sets.items()}
    return "{" + ", ".join(f"{name} = {{{each}}}" for name, each in words.items()) + "}"


_CONSTANTS = {
    "LEASE": _records.LEASE,
    "SILENT_AFTER": _records.SILENT_AFTER,
    "FORGET_AFTER": _records.FORGET_AFTER,
    "LEAVING": _records.LEAVING,
    "SKEW": _records.SKEW,
    "ROOM_FOR_NEW": _records.ROOM_FOR_NEW,
    "DIGITS": _records.MOST_DIGITS_OF_A_COUNT,
    "EXACT": _lease_sums.EXACT,
    "SHARDS": _SHARDS,
    "REMAKE": 1000,
    "MOST_REMADE": 300,  # members in one call, or those of one shard more
    "MOST_FIELDS": 100_000,
    "MOST_BYTES": 10_000_000,  # what is larger is not ours; reading it would stop the server
    "LONGEST_SUM": 1_000_000,
    "GRANTED": _records.GRANTED,
    "STALE": _records.STALE,
    "TAKEN": _records.TAKEN,
    "CLOSED": _rulings.CLOSED,
    "OPEN": _rulings.OPEN,
    "PROBE": _rulings.PROBE,
    "PASSED": _rulings.PASSED,
    "FAILED": _rulings.FAILED,
    "DECLINED": _rulings.DECLINED,
    "IDLE": _verdict.IDLE,
    "WIDTH": _WIDTH,
    "ORDERS_KEPT": _orders.ORDERS_KEPT,
    "TOO_LATE": _orders.TOO_LATE,
    "ORDERS": _lua_sets({kind: (*allowed, _orders.AUTO) for kind, allowed in _orders.KINDS.items()}),
}

_MISSING = "a fleet on Redis or Valkey needs redis-py: pip install 'guardrails-db[redis]'"

_KEY = re.compile(r"guardrails:\{([^{}]*)\}:(budget|verdict|order)2(\.[0-9]+)?:(.*)")

_REASONS = (
    (("AuthenticationError",), "it refuses the login"),
    (
        ("NoPermissionError", "ACL failure in script", "The user executing the script"),
        "its user lacks a right that a fleet needs, on commands or the keys guardrails:*",
    ),
    (("ReadOnlyError",), "it is a read-only replica; give the address of the primary"),
    (
        ("ClusterDownError", "ClusterCrossSlotError", "MovedError", "AskError"),
        "it is a cluster; a fleet needs one that is none",
    ),
    (("MasterNotFoundError",), "no sentinel in reach knows its primary"),
    (("BusyLoadingError",), "it loads its data"),
    (("OutOfMemoryError",), "its memory is full"),
    (("MISCONF",), "it refuses writes, as it cannot save them"),
)
"""The classes of redis-py's errors, or the first words of those without a class, and what they mean. Other
words of an error do not count: they may be names that people chose."""


SCRIPT = "".join(f"local {name} = {value}\n" for name, value in _CONSTANTS.items())
SCRIPT += Path(__file__).with_name("lease.lua").read_text(encoding="utf-8")
"""The script that renews leases, with its constants. Read once: a child may find the file gone."""


class RedisStore:
    """Keeps leases in Redis or Valkey.

    Args:
        url: The URL.
        fleet: The fleet's name.

    Raises:
        ConfigurationError: redis-py is not installed, or cannot read the URL.
    """

    def __init__(self, url: str, fleet: str) -> None:
        try:
            import redis  # noqa: PLC0415 - an optional dependency, whose import takes 0.3 s
            from redis.backoff import NoBackoff  # noqa: PLC0415
            from redis.retry import Retry  # noqa: PLC0415
        except ImportError as error:
            raise ImportError(_MISSING) from error
        self._prefix = f"guardrails:{{{fleet}}}:"
        self._digest = sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()
        self._error = redis.RedisError
        self._unknown_script = redis.exceptions.NoScriptError
        self._refused = redis.ResponseError
        try:
            self._client = (client_of if url.startswith(SCHEMES) else redis.Redis.from_url)(
                url,
                socket_timeout=_TIMEOUT,
                socket_connect_timeout=_TIMEOUT,
                retry=Retry(NoBackoff(), 0),
                client_name="guardrails-fleet",
                encoding_errors="replace",
                decode_responses=True,
            )
            pool = self._client.connection_pool
            pool.connection_class(**pool.connection_kwargs)  # an unknown option is an error here
        except (ValueError, TypeError, redis.RedisError):
            # The error's text may hold the URL, and that a password.
            raise ConfigurationError("Fleet: url must be one that redis-py can read, got another") from None

    def exchange(self, asks: Sequence[Ask]) -> list[Answer]:
        """See Store."""
        keys = [f"{self._prefix}{_kind(ask)}2:{ask.name}" for ask in asks]
        words = [word for ask in asks for word in _words(ask)]
        replies = self._call(self._run, keys, words)
        if not isinstance(replies, list) or len(replies) != len(asks):
            raise StoreError("its answer cannot be read")
        try:
            return [_answer(ask, values) for ask, values in zip(asks, replies, strict=True)]
        except (TypeError, ValueError):
            raise StoreError("its answer cannot be read") from None

    def read(self) -> StoreView:
        """See Store."""
        return cast("StoreView", self._call(self._read))

    def close(self) -> None:
        """See Store."""
        with suppress(Exception):
            self._client.connection_pool.disconnect()

    def _run(self, keys: list[str], words: list[Any]) -> Any:
        try:
            return self._client.evalsha(self._digest, len(keys), *keys, *words)
        except self._unknown_script:  # it was restarted, or SCRIPT FLUSH was called
            return self._client.eval(SCRIPT, len(keys), *keys, *words)

    def _read(self) -> StoreView:
        seconds, micros = self._client.time()
        view = StoreView(seconds * 1000 + micros // 1000, {}, {}, {})
        for key in self._client.scan_iter(match="guardrails:{*}:*", count=1000):
            names = _KEY.fullmatch(key)
            if names is None or self._client.type(key) != "hash":
                continue
            found = {"budget": view.budgets, "verdict": view.verdicts, "order": view.orders}[names[2]]
            fields = found.setdefault((names[1], names[4]), {})
            if names[3] is None and names[2] != "order":
                fields[EPOCH] = cast("str | None", self._client.hget(key, EPOCH)) or ""
            else:
                fields.update(cast("dict[str, str]", self._client.hgetall(key)))
        return view

    def _call(self, function: Any, *args: Any) -> Any:
        try:
            return function(*args)
        except (self._error, OSError, ValueError) as error:
            self.close()  # a late reply must not be taken for that of the next request
            raise StoreError(_reason(error, refused=isinstance(error, self._refused))) from None


def _reason(error: Exception, *, refused: bool) -> str:
    kind = type(error).__name__
    for known, meaning in _REASONS:
        if kind in known or str(error).startswith(known):
            return meaning
    return "it answers with an error" if refused else kind


def _kind(ask: Ask) -> str:
    kinds = {VerdictRequest: "verdict", OrdersRequest: "order"}
    return kinds.get(type(ask.request), "budget")


def _words(ask: Ask) -> list[Any]:
    kinds = {VerdictRequest: "judge", OrdersRequest: "steer"}
    kind = kinds.get(type(ask.request), "leave" if ask.leaving else "renew")
    words = [int(word) if isinstance(word, bool) else word for word in ask.request]
    shard = crc32(ask.request.worker.encode()) % _SHARDS
    return [kind, shard, *words, *[""] * (_WIDTH - 2 - len(words))]


def _answer(ask: Ask, values: Any) -> Answer:
    if isinstance(ask.request, VerdictRequest):
        return Ruling(*map(int, values))
    if isinstance(ask.request, OrdersRequest):
        return Orders(*map(str, values))
    status, grant, safe, workers, budget, largest, learning, borrowed = map(int, values)
    return Reply(status, grant, safe, workers, budget, largest, learning == 1, borrowed)
