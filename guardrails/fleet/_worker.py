"""The thread of one process that renews its leases, and what ticks them. Depends on a store and on forks.

The housekeeper's thread keeps the time: ten times a second each lease is measured and its limit applied. The
fleet's own thread talks to the store. No call of the application waits for either.
"""

from __future__ import annotations

import atexit
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from guardrails._runtime.fork import check_process, in_child
from guardrails._runtime.guard_log import log
from guardrails._runtime.housekeeper import run_later
from guardrails._runtime.threads import daemon
from guardrails._util.weak_registry import WeakRegistry
from guardrails.fleet._records import Request
from guardrails.fleet._stores import Ask, Store, StoreError
from guardrails.fleet._verdict import VerdictRequest

__all__ = ["FleetWorker", "Identity", "LeaseTask"]

_TICK = 0.1
_WARN_INTERVAL = 60.0
"""Seconds between two lines in the log about the store."""

_GOODBYE = 1.0
"""Seconds for which a process that ends waits for its thread, to say goodbye."""


class Identity(NamedTuple):
    """Which worker this process is.

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
        says_goodbye: True if the store is told when it ends.
    """

    budget: str
    is_lost: bool
    says_goodbye: bool

    def tick(self, now: float) -> bool:
        """Measures and applies; True if the store is to be asked."""

    def request(self, identity: Identity) -> Request | VerdictRequest:
        """Returns the next request."""

    def answered(self, reply: Any) -> bool:
        """Takes the answer to the last request; False if another process uses the same ``worker_id``."""

    def forget(self) -> None:
        """Forgets its lease, in a child process."""


_workers: WeakRegistry[FleetWorker] = WeakRegistry()


class FleetWorker:
    """Renews the leases of one process.

    Args:
        fleet: The fleet's name.
        store: Makes its store.
        worker_id: The name that this process keeps over a restart; None takes a new one.
    """

    def __init__(self, fleet: str, store: Callable[[], Store], worker_id: str | None) -> None:
        self.fleet = fleet
        self._new_store = store
        self._given = worker_id
        self._process = os.getpid()
        self._next_line = 0.0
        self._reset()
        _workers.add(self)

    def _reset(self) -> None:
        self._tasks: WeakRegistry[LeaseTask] = WeakRegistry()
        self._store = self._new_store()
        self._in_use = threading.Lock()
        self._starting = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._suffixes: dict[int, str] = {}
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
                self._suffixes[id(task)] = f"#{len(self._suffixes)}" if self._suffixes else ""
                self._tasks.add(task)
            if self._thread is None:
                self._thread = daemon("guardrails-fleet", self._run, self._wake)
                self._thread.start()
                run_later(self._tick, 0.0)

    def _tick(self) -> float | None:
        """In the housekeeper's thread."""
        tasks, now = self._tasks.living(), time.monotonic()
        if self.closed or not tasks:
            self._end()
            return None
        is_due = False
        for task in tasks:
            is_due |= task.tick(now)
        self._report(any(task.is_lost for task in tasks), now)
        if is_due:
            self._wake.set()
        return _TICK

    def _end(self) -> None:
        with self._starting:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._wake.set()
                self._wake = threading.Event()

    def _run(self, wake: threading.Event) -> None:
        while True:
            wake.wait()
            wake.clear()
            if wake is not self._wake or self.closed:
                return
            try:
                self._renew()
            except Exception:  # noqa: BLE001 - logged; without this thread the lease would be lost for good
                log.exception("fleet %r: a renewal failed", self.fleet)

    def _renew(self) -> None:
        with self._in_use:
            tasks = self._tasks.living()
            if self.closed or not tasks:
                return
            asks = [Ask(task.budget, task.request(self._identity_of(task))) for task in tasks]
            try:
                replies = self._store.exchange(asks)
            except StoreError as error:
                self._error = str(error)
                return
        self._error = ""
        kept = [task.answered(reply) for task, reply in zip(tasks, replies, strict=True)]
        if not all(kept):
            log.warning(
                "fleet %r: another process uses the worker_id %r; this one takes another",
                self.fleet,
                self.identity.worker,
            )
            self.identity = self.identity._replace(worker=f"{self.identity.worker}~{secrets.token_hex(3)}")

    def _identity_of(self, task: LeaseTask) -> Identity:
        """Two pools that share one budget are two members."""
        return self.identity._replace(worker=self.identity.worker + self._suffixes[id(task)])

    def _report(self, is_lost: bool, now: float) -> None:  # noqa: FBT001
        was_lost, self._was_lost = self._was_lost, is_lost
        if is_lost and now >= self._next_line:
            self._next_line = now + _WARN_INTERVAL
            log.warning(
                "fleet %r: no contact to its store (%s); each pool keeps its safe share",
                self.fleet,
                self._error or "no answer",
            )
        elif was_lost and not is_lost:
            log.info("fleet %r: in contact with its store again", self.fleet)

    # --- leaving ------------------------------------------------------------------------------------

    def leave(self, *tasks: LeaseTask) -> None:
        """Says goodbye for some leases, or for all, if the store can be reached within a second."""
        leaving = [task for task in self._tasks.living() if not tasks or task in tasks]
        if not leaving or not self._in_use.acquire(timeout=_GOODBYE):
            return
        try:
            asks = [
                Ask(task.budget, task.request(self._identity_of(task)), leaving=True)
                for task in leaving
                if task.says_goodbye
            ]
            with suppress(StoreError):
                if asks:
                    self._store.exchange(asks)
            kept = [task for task in self._tasks.living() if task not in leaving]
            self._tasks = WeakRegistry()
            for task in kept:
                self._tasks.add(task)
        finally:
            self._in_use.release()

    def close(self) -> None:
        """Says goodbye and ends; see `Fleet.close`."""
        self.leave()
        self.closed = True
        self._wake.set()
        self._store.close()

    def start_in_child(self) -> None:
        """Makes a child process a worker of its own, from its first connection on."""
        tasks = self._tasks.living()
        self._reset()
        for task in tasks:
            task.forget()


def _leave_all() -> None:
    for worker in _workers.living():
        with suppress(Exception):
            worker.leave()


def _in_child() -> None:
    for worker in _workers.living():
        worker.start_in_child()


in_child(_in_child)
atexit.register(_leave_all)
