"""Rules for the life of a pool's connections: when one is closed, pinged or opened.

Pure: time and randomness are arguments. Must not import a pool or a driver.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from guardrails._util.checks import Faults, shown
from guardrails.errors import ConfigurationError

__all__ = ["RENEWAL", "Age", "LifeSettings", "PoolLife"]

RENEWAL = 2.0
"""Seconds within which a renewal closes all old connections of a pool, one after the other."""

_JITTER = 0.025
"""Maximum share by which ``max_lifetime`` of a connection is shortened, as in HikariCP: connections that were
opened together are not closed together."""

_MAX_INTERVAL = 30.0
"""Maximum seconds between two checks of the idle connections."""

_MIN_INTERVAL = 0.05
"""Minimum seconds between two checks."""

_REFILL_INTERVAL = 1.0
"""Seconds between two checks of the number of idle connections, where a minimum is set."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class LifeSettings:
    """The settings of a pool's life, with HikariCP's names, in seconds; None is off.

    Attributes:
        minimum_idle: Number of connections that are kept open and idle, from the first one that is opened.
        idle_timeout: Idle time after which a connection above ``minimum_idle`` is closed.
        max_lifetime: Age at which a connection is closed, idle or on its return. Each lives up to 2.5 %
            shorter.
        keepalive: Idle time after which a connection is pinged.
    """

    minimum_idle: int = 0
    idle_timeout: float | None = None
    max_lifetime: float | None = None
    keepalive: float | None = None

    @property
    def are_set(self) -> bool:
        """True if any of them is on."""
        return bool(self.minimum_idle or self.idle_timeout or self.max_lifetime or self.keepalive)

    @classmethod
    def taken_from(cls, options: dict[str, Any], name: object, most: int | None, kind: str) -> LifeSettings:
        """Takes the settings for one pool out of the options of its guard, and checks them.

        Args:
            options: The options of the guard.
            name: The guard's name.
            most: Connections that the pool keeps idle; None if it keeps none, 0 if it has no limit.
            kind: The name of the pool in the error.

        Raises:
            ConfigurationError: A setting is wrong, or the pool keeps no idle connections.
        """
        life = cls(**{field: options.pop(field) for field in cls.__slots__ if field in options})
        faults = Faults(f"guard {shown(name)}")
        faults.count("minimum_idle", life.minimum_idle, least=0, most=most or None)
        for field in ("idle_timeout", "max_lifetime", "keepalive"):
            faults.seconds(field, getattr(life, field), none=True)
        faults.raise_if_any()
        if life.keepalive and life.max_lifetime and life.keepalive >= life.max_lifetime:
            faults.add("keepalive", life.keepalive, f"below max_lifetime, which is {life.max_lifetime:g}")
        faults.raise_if_any()
        if most is None and life.are_set:
            raise ConfigurationError(
                f"guard {shown(name)}: {kind} keeps no idle connections, so minimum_idle, idle_timeout, "
                "max_lifetime and keepalive have no effect; leave them out or use a pool that keeps some"
            )
        return life


class Age:
    """The times of one connection, on ``time.monotonic``.

    Attributes:
        opened: When it was opened.
        used: When it was last returned, or opened.
        pinged: When it was last pinged.
        share: Random number in [0, 1), so that several connections are closed at different times.
        process: The process that opened it. A child must not touch its parent's connections.
        loop: The event loop that it belongs to; None in threads.
        peer: The address of its server; None if unknown.
    """

    __slots__ = ("loop", "opened", "peer", "pinged", "process", "share", "used")

    def __init__(self, now: float, share: float, loop: Any = None, peer: str | None = None) -> None:
        self.opened = self.used = self.pinged = now
        self.share = share
        self.process = os.getpid()
        self.loop = loop
        self.peer = peer


class PoolLife:
    """Decides about the idle connections of one pool.

    Args:
        settings: The settings.

    Attributes:
        acts: True if a returned connection may have to be closed.
        settings: The settings.
        renewed_at: Connections that were opened before this time are closed within `RENEWAL` seconds of it.
    """

    def __init__(self, settings: LifeSettings) -> None:
        self.settings = settings
        self.acts = settings.are_set
        self.renewed_at = -math.inf
        self._gone: frozenset[str] | None = None

    def renew(self, now: float, gone: frozenset[str] | None = None) -> bool:
        """Begins to renew the pool; False if a renewal is under way already.

        Args:
            now: The time.
            gone: Addresses whose connections are closed; None: all connections are closed.
        """
        if now < self.renewed_at + RENEWAL and (self._gone is None or self._gone == gone):
            return False
        self.acts = True
        self.renewed_at = now
        self._gone = gone
        return True

    def end_of(self, age: Age) -> float:
        """Returns the time at which a connection is to be closed; infinite if there is none."""
        end = math.inf
        if self.settings.max_lifetime is not None:
            end = age.opened + self.settings.max_lifetime * (1 - _JITTER * age.share)
        if age.opened < self.renewed_at and (self._gone is None or age.peer in self._gone):
            end = min(end, self.renewed_at + RENEWAL * age.share)
        return end

    def to_close(self, now: float, idle: Sequence[tuple[T, Age]], above: int) -> list[T]:
        """Returns the connections to close now.

        Args:
            now: The time.
            idle: The idle connections.
            above: Number of connections that are open above the limit.
        """
        over = [each for each, age in idle if now >= self.end_of(age)]
        left = sorted(
            ((each, age) for each, age in idle if now < self.end_of(age)), key=lambda pair: pair[1].used
        )
        above -= len(over)
        spare = len(left) - self.settings.minimum_idle
        timeout = self.settings.idle_timeout
        for each, age in left:
            idle_too_long = timeout is not None and spare > 0 and now - age.used >= timeout
            if above > 0 or idle_too_long:
                over.append(each)
                above -= 1
                spare -= 1
        return over

    def to_ping(self, now: float, idle: Sequence[tuple[T, Age]]) -> list[T]:
        """Returns the connections to ping now, those idle longest first."""
        keepalive = self.settings.keepalive
        if keepalive is None:
            return []
        due = [
            (last, index) for index, (_, age) in enumerate(idle) if now - (last := _last(age)) >= keepalive
        ]
        return [idle[index][0] for _, index in sorted(due)]

    def next_check(self, now: float, idle: Sequence[tuple[T, Age]]) -> float:
        """Returns the seconds until the next check."""
        settings = self.settings
        limits = (
            settings.keepalive,
            settings.idle_timeout,
            settings.max_lifetime,
        )  # of a connection that is idle from now on
        earliest = now + min(
            [_REFILL_INTERVAL if settings.minimum_idle else _MAX_INTERVAL, *filter(None, limits)]
        )
        if now < self.renewed_at + RENEWAL:  # a connection that returns meanwhile is due then
            earliest = min(earliest, self.renewed_at + RENEWAL)
        spare = len(idle) > settings.minimum_idle
        for _, age in idle:
            earliest = min(earliest, self.end_of(age))
            if settings.keepalive is not None:
                earliest = min(earliest, _last(age) + settings.keepalive)
            if settings.idle_timeout is not None and spare:
                earliest = min(earliest, age.used + settings.idle_timeout)
        return max(_MIN_INTERVAL, earliest - now)


def _last(age: Age) -> float:
    return max(age.used, age.pinged)
