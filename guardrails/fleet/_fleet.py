"""`Fleet`: what an application makes. Depends on the stores, the worker and the leases of pools."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from guardrails._guard.guard import Guard
from guardrails._util.checks import Faults, shown
from guardrails.errors import ConfigurationError
from guardrails.fleet._guard_verdict import GuardVerdict
from guardrails.fleet._pool_lease import PoolLease
from guardrails.fleet._records import MOST_CONNECTIONS
from guardrails.fleet._slots import Follower, SlotMember
from guardrails.fleet._steering import Steering, check_order, give, who
from guardrails.fleet._stores import Store, StoreError
from guardrails.fleet._worker import FleetWorker

__all__ = ["Budget", "Fleet", "Verdict", "store_of"]

_NAME = re.compile(r"(?!@)[!-z|~]{1,100}")
_REDIS = ("redis://", "rediss://", "unix://", "redis+sentinel://", "rediss+sentinel://")
_SQLITE = "sqlite:///"


@dataclass(frozen=True, slots=True)
class Budget:
    """A budget of connections that many processes share; made by `Fleet.budget`.

    Attributes:
        name: Its name.
        connections: The largest number of open connections of all workers together.
        minimum: The number of connections that each worker gets in any case.
    """

    name: str
    connections: int
    minimum: int
    _worker: FleetWorker = field(repr=False, compare=False)

    def lease(self, guard: Guard, open_connections: Callable[[], int]) -> PoolLease:
        """Makes the lease of one guarded pool, for integrations.

        Args:
            guard: The pool's guard.
            open_connections: Returns the number of connections that are open or being opened.
        """
        return PoolLease(self.name, self.connections, self.minimum, guard, open_connections, self._worker)

    def enroll(self, guard: Guard) -> SlotMember:
        """Makes a guard without a pool a member, with its slots for connections; see `Guard`."""
        return SlotMember(guard, self.lease(guard, int), self.followers(guard))

    def follow(self, guard: Guard) -> GuardVerdict | None:
        """Lets a guard follow the verdict of this name; None if the guard has no circuit."""
        if guard.call_settings.policy is None:
            return None
        return GuardVerdict(self.name, guard, self._worker)

    def followers(self, guard: Guard) -> list[Follower]:
        """Lets a guard follow the verdict and the orders of this name, for integrations."""
        verdict, steering = self.follow(guard), Steering(self.name, guard, self._worker)
        return [steering] if verdict is None else [verdict, steering]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A dependency that many processes judge together; made by `Fleet.verdict`.

    Attributes:
        name: Its name.
    """

    name: str
    _worker: FleetWorker = field(repr=False, compare=False)

    def enroll(self, guard: Guard) -> SlotMember:
        """Makes a guard without a pool a member; see `Guard`.

        Raises:
            ConfigurationError: The guard has no circuit.
        """
        return SlotMember(guard, None, self.followers(guard))

    def follow(self, guard: Guard) -> GuardVerdict:
        """Lets a guard follow it, for integrations.

        Raises:
            ConfigurationError: The guard has no circuit.
        """
        return GuardVerdict(self.name, guard, self._worker)

    def followers(self, guard: Guard) -> list[Follower]:
        """Lets a guard follow it and the orders of this name, for integrations."""
        return [self.follow(guard), Steering(self.name, guard, self._worker)]


class Fleet:
    """The processes that share budgets and verdicts, and the store of both.

    ::

        fleet = Fleet("redis://cache:6379/0", name="shop")
        db = protect(engine, fleet=fleet.budget("orders-db", connections=80))

    It does nothing until the first connection is opened. A process that only forks workers is no worker; each
    child is one of its own.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://`` for Redis or Valkey;
            ``redis+sentinel://host:26379,other:26379/mymaster/0`` for one whose primary Sentinels know;
            ``sqlite:///relative.db`` or ``sqlite:////absolute.db`` for the workers of one machine.
        name: Names the fleet in its store.
        worker_id: A name of this process that no other one has, and that it keeps when it is restarted: the
            new process then takes the connections of the old one over. None takes a new name each time. A
            forked child adds its process number.

    Raises:
        ConfigurationError: An argument is wrong. No message holds the URL.
        ImportError: A URL of Redis, without redis-py.
    """

    def __init__(self, url: str, *, name: str, worker_id: str | None = None) -> None:
        faults = Faults("Fleet")
        _check_name(faults, "name", name)
        if worker_id is not None:
            _check_name(faults, "worker_id", worker_id)
        faults.raise_if_any()
        self.name = name
        self._budgets: dict[str, Budget] = {}
        self._worker = FleetWorker(name, store_of(url, name), worker_id)

    def budget(self, name: str, *, connections: int, minimum: int = 1) -> Budget:
        """Returns a budget of connections, for ``protect(engine, fleet=...)``.

        Args:
            name: Its name: the same in all processes.
            connections: The largest number of open connections of all workers together. If workers name
                different numbers, the smallest counts, and a warning is logged.
            minimum: The number of connections that each worker gets in any case. It is what a worker has that
                has never reached the store.

        Raises:
            ConfigurationError: An argument is wrong, or this process has a budget of that name with others.
        """
        faults = Faults(f"fleet {self.name!r}: budget {shown(name)}")
        _check_name(faults, "name", name)
        faults.count("connections", connections, most=MOST_CONNECTIONS)
        faults.count("minimum", minimum, most=connections if type(connections) is int else None)
        faults.raise_if_any()
        made = Budget(name, connections, minimum, self._worker)
        known = self._budgets.setdefault(name, made)
        if known != made:
            raise ConfigurationError(
                f"fleet {self.name!r}: the budget {name!r} has {known.connections} connections and a minimum "
                f"of {known.minimum} already, got {connections} and {minimum}"
            )
        return known

    def verdict(self, name: str) -> Verdict:
        """Returns a verdict, for ``protect(engine_or_client, fleet=...)``.

        The circuits of all workers open when their calls together reach a rate of the guard's policy, and two
        of them have seen it; one of them makes the probes for all. A budget has the verdict of its name.

        Args:
            name: Its name: the same in all processes.

        Raises:
            ConfigurationError: The name is wrong.
        """
        faults = Faults(f"fleet {self.name!r}: verdict {shown(name)}")
        _check_name(faults, "name", name)
        faults.raise_if_any()
        return Verdict(name, self._worker)

    def steer(self, name: str, what: str, *, by: str | None = None) -> None:
        """Gives an order to the guards of one budget or verdict in all processes; they obey within 1.5 s.

        A process that starts later obeys, too. What is set by hand in a process afterwards stays until a
        later order. It waits for the store; on an event loop, call it in a thread.

        Args:
            name: The name of the budget or verdict.
            what: ``"enforce"``, ``"shadow"`` or ``"off"``; ``"force_open"``, ``"disable"``,
                ``"metrics_only"`` or ``"reset"``, as the methods of a guard; or ``"auto"``, which ends the
                orders.
            by: Who gives it, for the log and the status pages; None is ``user@host``.

        Raises:
            ConfigurationError: An argument is wrong.
            ConnectionError: The store cannot be used now.
        """
        faults = Faults(f"fleet {self.name!r}: steer")
        _check_name(faults, "name", name)
        check_order(faults, what, by)
        faults.raise_if_any()
        store = self._worker.new_store()
        try:
            give(store, name, what, by or who())
        except StoreError as error:
            raise ConnectionError(f"fleet {self.name!r}: its store cannot be used: {error}") from None
        finally:
            store.close()

    def close(self) -> None:
        """Returns the leases of this process; other workers get them soon. Repeated calls do nothing.

        Call it after the last connection was closed. An orderly exit of the process does the same.
        A store that does not answer delays it by up to two seconds: on an event loop, call it in a thread.
        """
        self._worker.close()

    def __repr__(self) -> str:
        return f"<Fleet {self.name!r} worker {self._worker.identity.worker!r}>"


def _check_name(faults: Faults, what: str, name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        faults.add(
            what, name, "a text of 1 to 100 visible ASCII characters without braces, not beginning with @"
        )


def store_of(url: object, name: str) -> Callable[[], Store]:
    """Returns what makes the store of a fleet; see `Fleet`.

    Raises:
        ConfigurationError: It is no URL of a store.
        ImportError: A URL of Redis, without redis-py.
    """
    if isinstance(url, str) and url.startswith(_REDIS):
        from guardrails.fleet._redis_store import RedisStore  # noqa: PLC0415 - imported where it is used

        return lambda: RedisStore(url, name)
    if isinstance(url, str) and url.startswith(_SQLITE) and url.removeprefix(_SQLITE).strip("/"):
        from guardrails.fleet._sqlite_store import SQLiteStore  # noqa: PLC0415

        return lambda: SQLiteStore(url.removeprefix(_SQLITE), name)
    raise ConfigurationError(
        "Fleet: url must begin with redis://, rediss:// or unix://, with redis+sentinel:// or "
        "rediss+sentinel://, or with sqlite:/// and name a file"
    )
