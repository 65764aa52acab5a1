"""The thread of one process that renews its leases, and the task that measures them.

The housekeeper's thread keeps the time: ten times a second each lease is measured and its limit applied. The
fleet's own thread asks the store. No call of the application waits for either. Depends on stores and forks.
"""

from __future__ import annotations

import atexit
import math
import os
import secrets
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple, Protocol, TypeVar

from guardrails._runtime.fork import check_process, in_child
from guardrails._runtime.guard_log import log
from guardrails._runtime.housekeeper import run_later
from guardrails._runtime.threads import daemon
from guardrails._util.weak_registry import WeakRegistry
from guardrails.fleet._orders import OrdersRequest
from guardrails.fleet._records import Request
from guardrails.fleet._rulings import VerdictRequest
from guardrails.fleet._stores import Ask, Store, StoreError

__all__ = ["FleetWorker", "Identity", "LeaseTask"]

_TICK = 0.1
_WARN_INTERVAL = 60.0
"""Seconds between two log entries about the same fault."""

_LEAVE_TIMEOUT = 1.0
"""Seconds for which a process that ends waits for its thread, to return its leases."""

_MAX_LEAVE_REQUESTS = 100
"""Maximum number of requests to leave that are kept while the store is gone. It forgets others by itself."""

T = TypeVar("T")


class Identity(NamedTuple):
    """The identity of this process as a worker.

    Attributes:
        worker: Its ``worker_id``.
        instance: A random number of the process.
        host: The name of its machine.
    """

    worker: str
    instance: str
    host: str


class LeaseTask(Protocol):
    """One lease of the process.

    Attributes:
        budget: The name of its budget.
        is_lost: True while it has no contact.
        reports_leaving: True if a request tells the store when the task ends.
        is_member: True if the store has a record under its name.
        suffix: Appended to the name of the process, as two pools that share one budget are two members.
    """

    budget: str
    is_lost: bool
    reports_leaving: bool
    is_member: bool
    suffix: str

    def tick(self, now: float) -> bool:
        """Measures and applies; True if the store is to be asked."""

    def request(self, identity: Identity) -> Request | VerdictRequest | OrdersRequest:
        """Returns the next request."""

    def take_reply(self, reply: Any) -> bool:
        """Applies the reply to the last request; False if another process uses the same ``worker_id``."""

    def forget(self) -> None:
        """Forgets its lease, in a child process."""


_workers: WeakRegistry[FleetWorker] = WeakRegistry()


class FleetWorker:
    """Renews the leases of one process.

    Args:
        fleet: The fleet's name.
        store: Makes its store.
        worker_id: The name that this process keeps over a restart; None takes a new one.

    Attributes:
        new_store: Makes its store.
    """

    def __init__(self, fleet: str, store: Callable[[], Store], worker_id: str | None) -> None:
        self.fleet = fleet
        self.new_store = store
        self._given = worker_id
        self._process = os.getpid()
        self._store: Store | None = store()  # made here, as a wrong URL is an error here
        self._reset()
        _workers.add(self)

    def _reset(self) -> None:
        self._tasks: WeakRegistry[LeaseTask] = WeakRegistry()
        self._in_use = threading.Lock()  # held while the store is asked
        # These two are reentrant, as a finaliser may use a pool. `_asking` is taken before `_starting`.
        self._asking = threading.RLock()  # held while requests are made, as they are numbered
        self._starting = threading.RLock()  # held while the tasks or the thread change
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._next_line: dict[str, float] = {}
        self._numbers: defaultdict[tuple[type[LeaseTask], str], count[int]] = defaultdict(count)
        self._leave_requests: list[Ask] = []
        self._error = ""
        self._was_lost = self.closed = False
        host = "".join(letter for letter in socket.gethostname() if "!" <= letter <= "~")[:60]
        instance = secrets.token_hex(6)
        is_child = os.getpid() != self._process
        name = self._given or f"{host}:{os.getpid()}:{instance[:4]}"
        if self._given and is_child:
            name = f"{self._given}:{os.getpid()}"
        self.identity = Identity(name, instance, host)

    def join(self, task: LeaseTask) -> None:
        """Begins to renew a lease; harmless if it is renewed already."""
        check_process()
        with self._starting:
            if self.closed:
                return
            if task not in self._tasks.living():
                # By kind and budget, not by the order of first use: a restarted process finds its records.
                number = next(self._numbers[type(task), task.budget]) if task.is_member else 0
                task.suffix = f"#{number}" if number else ""
                self._tasks.add(task)
            if self._thread is None:
                self._thread = daemon("guardrails-fleet", self._run, self._wake)
                self._thread.start()
                run_later(self._tick, 0.0)

    def _tick(self) -> float | None:
        """Ticks every task, in the housekeeper's thread. Must not raise: it would not be called again."""
        if self._has_ended():
            return None
        tasks, now = self._tasks.living(), time.monotonic()
        is_due = [self._attempt(task.tick, now) for task in tasks]
        self._report(any(task.is_lost for task in tasks), now)
        if any(is_due):
            self._wake.set()
        return _TICK

    def _has_ended(self) -> bool:
        with self._starting:  # a task that joins later finds no thread, and starts one
            if self._tasks.living() and not self.closed:
                return False
            self._thread = None
            self._wake.set()
            self._wake = threading.Event()
            return True

    def _run(self, wake: threading.Event) -> None:
        while True:
            wake.wait()
            wake.clear()
            self._attempt(self._renew)
            if wake is not self._wake or self.closed:
                return

    def _renew(self, seconds: float = -1) -> None:
        """Renews every lease, and returns those of tasks that have left.

        Args:
            seconds: How long to wait for another thread that does the same; -1 waits until it is done.
        """
        if not self._in_use.acquire(timeout=seconds):
            return
        asks, first = list[Ask](), 0
        try:
            if self.closed:
                return
            with self._asking:
                asks, self._leave_requests = self._leave_requests, []
                first = len(asks)
                asked = [(task, self._ask(task)) for task in self._tasks.living()]
            tasks = [task for task, ask in asked if ask is not None]
            asks += [ask for _, ask in asked if ask is not None]
            if not asks:
                return
            if self._store is None:
                self._store = self.new_store()
            replies = self._store.exchange(asks)[first:]
        except StoreError as error:
            self._error = str(error)
            with self._asking:  # they are sent with the next renewal
                self._leave_requests = (asks[:first] + self._leave_requests)[-_MAX_LEAVE_REQUESTS:]
            return
        finally:
            self._in_use.release()
        self._error = ""
        living = self._tasks.living()
        answered = [each for each in zip(tasks, replies, strict=True) if each[0] in living]
        if False in [self._attempt(task.take_reply, reply) for task, reply in answered]:
            log.warning(
                "fleet %r: another process uses the worker_id %r; this one takes another",
                self.fleet,
                self.identity.worker,
            )
            self.identity = self.identity._replace(worker=f"{self.identity.worker}~{secrets.token_hex(3)}")

    def _ask(self, task: LeaseTask, *, leaving: bool = False) -> Ask | None:
        identity = self.identity._replace(worker=self.identity.worker + task.suffix)
        request = self._attempt(task.request, identity)
        return None if request is None else Ask(task.budget, request, leaving)

    def _attempt(self, step: Callable[..., T], *args: Any) -> T | None:
        """Runs a step; an error, such as one of an application's clock, is logged and stops no other step."""
        try:
            return step(*args)
        except Exception:  # noqa: BLE001 - logged; without the other steps the budget would not be kept
            if self._may_log("error", time.monotonic()):
                log.exception("fleet %r: a step failed; it is tried again", self.fleet)
            return None

    def _report(self, is_lost: bool, now: float) -> None:  # noqa: FBT001
        if is_lost and self._may_log("contact", now):
            self._was_lost = True
            log.warning(
                "fleet %r: no contact to its store (%s); each pool keeps its safe share",
                self.fleet,
                self._error or "no answer",
            )
        elif self._was_lost and not is_lost:
            self._was_lost = False
            log.info("fleet %r: in contact with its store again", self.fleet)

    def _may_log(self, fault: str, now: float) -> bool:
        if now < self._next_line.get(fault, -math.inf):
            return False
        self._next_line[fault] = now + _WARN_INTERVAL
        return True

    # --- leaving ------------------------------------------------------------------------------------

    def leave(self, *tasks: LeaseTask) -> None:
        """Ends the renewal of some leases, or of all; the fleet's own thread returns them."""
        check_process()
        with self._asking:
            leaving = [task for task in self._tasks.living() if not tasks or task in tasks]
            asks = [self._ask(task, leaving=True) for task in leaving if task.reports_leaving]
            self._leave_requests += [ask for ask in asks if ask is not None]
            with self._starting:
                for task in leaving:
                    self._tasks.discard(task)
                self._wake.set()

    def leave_now(self) -> None:
        """Returns all leases, if the store can be reached within a second."""
        self.leave()
        self._attempt(self._renew, _LEAVE_TIMEOUT)

    def close(self) -> None:
        """Returns all leases and ends; see `Fleet.close`."""
        self.leave_now()
        self.closed = True
        self._wake.set()
        if self._store is not None:
            self._store.close()

    def start_in_child(self) -> None:
        """Makes a child process a worker of its own, from its first connection on."""
        tasks = self._tasks.living()
        self._store = None  # its own is made when it first asks, where an error breaks nothing
        self._reset()
        for task in tasks:
            self._attempt(task.forget)


def _leave_all() -> None:
    for worker in _workers.living():
        worker.leave_now()


def _in_child() -> None:
    for worker in _workers.living():
        worker.start_in_child()


in_child(_in_child)
atexit.register(_leave_all)
