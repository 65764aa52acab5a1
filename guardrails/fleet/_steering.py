"""One guard that follows the orders of its fleet, and how an order is given.

Depends on the guard, the worker and the stores.
"""

from __future__ import annotations

import getpass
import socket
import time
from datetime import UTC, datetime
from typing import Any

from guardrails._core.shadow import Mode
from guardrails._guard.guard import Guard, note_orders, set_state, switch
from guardrails._guard.mode import is_switched_off
from guardrails._runtime.guard_log import log
from guardrails._util.checks import Faults
from guardrails.fleet._orders import AUTO, KINDS, Order, Orders, OrdersRequest
from guardrails.fleet._stores import Ask, Store, StoreError
from guardrails.fleet._worker import FleetWorker, Identity

__all__ = ["WHAT", "Steering", "check_order", "give", "shown_order", "who"]

WHAT = (*KINDS["mode"], *KINDS["circuit"], AUTO)
"""What can be ordered."""

_RENEWAL = 1.0
"""Seconds between two requests."""

_STATES = {"force_open": "forced_open", "disable": "disabled", "metrics_only": "metrics_only"}
"""The state of the circuit after an order."""


class Steering:
    """The part of one guard in its fleet's orders.

    An order is followed once, when it is first received. A state that is set by hand afterwards stays until
    the next order.

    Args:
        name: The name of the budget or verdict.
        guard: The guard.
        worker: Asks the store.
    """

    reports_leaving = is_lost = is_member = False
    suffix = ""

    def __init__(self, name: str, guard: Guard, worker: FleetWorker) -> None:
        self.budget = name
        self._guard = guard
        self._worker = worker
        self._known: dict[str, Order] = {}
        self._mode_before: Mode | None = None
        self._has_heard = False
        self.forget()

    def forget(self) -> None:
        """Asks again at once, in a child process. Its guard is a copy, so it has followed the same orders."""
        self._asked = -1e9

    def join(self) -> None:
        """Begins to ask the store; repeated calls do nothing."""
        self._worker.join(self)

    def leave(self) -> None:
        """Ends asking the store."""
        self._worker.leave(self)

    def tick(self, now: float) -> bool:
        """Returns True if the store is to be asked now."""
        return now - self._asked >= _RENEWAL

    def request(self, identity: Identity) -> OrdersRequest:
        """Returns the next request, with the known orders for a store that has lost its data."""
        self._asked = time.monotonic()
        return OrdersRequest(identity.worker, mode=self._text("mode"), circuit=self._text("circuit"))

    def _text(self, kind: str) -> str:
        order = self._known.get(kind)
        return "" if order is None else order.write()

    def take_reply(self, answer: Any) -> bool:
        """Follows the new orders of an answer; always True."""
        if not isinstance(answer, Orders):
            return True
        now = _wall_time()
        followed: dict[tuple[int, str], Order] = {}
        for kind, text in (("mode", answer.mode), ("circuit", answer.circuit)):
            order, known = Order.read(kind, text, now), self._known.get(kind)
            if order is None or (known is not None and order.at <= known.at):
                continue
            self._known[kind] = order
            if self._follow(kind, order, known):
                followed[order.at, order.what] = order
        for order in followed.values():
            log.warning(
                "guard %r: %s, ordered by %s for the whole fleet %r at %s",
                self._guard.name,
                order.what,
                order.by,
                self._worker.fleet,
                _moment(order),
            )
        note_orders(self._guard, {kind: shown_order(order) for kind, order in self._known.items()})
        self._has_heard = True
        return True

    def _follow(self, kind: str, order: Order, known: Order | None) -> bool:
        """Follows one order; returns False if it changes nothing."""
        if kind == "mode":
            return self._follow_mode(order, known)
        if order.what in _STATES:
            set_state(self._guard, _STATES[order.what])
        elif order.what == "reset":
            if not self._has_heard:
                return False  # a reset from before the start of this process does not concern it
            set_state(self._guard, "reset")
        elif known is None or self._guard.state != _STATES.get(known.what):
            return False
        else:
            set_state(self._guard, "reset")
        return True

    def _follow_mode(self, order: Order, known: Order | None) -> bool:
        if order.what == AUTO:
            before, self._mode_before = self._mode_before, None
            if before is None or known is None or self._guard.mode != known.what:
                return False
            switch(self._guard, before)
            return True
        if self._mode_before is None:
            self._mode_before = self._guard.mode
        if not is_switched_off():  # GUARDRAILS_MODE=off outranks every order
            switch(self._guard, order.what)  # type: ignore[arg-type] # `Order.read` has checked it
        return True


def shown_order(order: Order) -> dict[str, str]:
    """Returns an order for people and for pages."""
    return {"order": order.what, "by": order.by, "at": _moment(order)}


def _moment(order: Order) -> str:
    return datetime.fromtimestamp(order.at / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def who() -> str:
    """Returns the user and the host, as ``user@host``."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user without a name
        user = "unknown"
    return _clean(f"{user}@{socket.gethostname()}")


def _clean(text: str) -> str:
    return "".join(letter if "!" <= letter <= "~" else "?" for letter in text)[:100]


def check_order(faults: Faults, what: object, by: object) -> None:
    """Notes what is wrong with an order."""
    if not isinstance(what, str) or what not in WHAT:
        faults.add("what", what, f"one of {', '.join(WHAT)}")
    if by is not None and (not isinstance(by, str) or by != _clean(by) or not by):
        faults.add("by", by, "a text of 1 to 100 visible ASCII characters without spaces, or None")


def give(store: Store, name: str, what: str, by: str) -> None:
    """Gives an order to all guards of a name.

    Args:
        store: The fleet's store.
        name: The name of the budget or verdict.
        what: A value of `WHAT`; `AUTO` ends both orders.
        by: Who gives it.

    Raises:
        StoreError: The store cannot be used, or its clock is more than a day behind.
    """
    (known,) = store.exchange([Ask(name, OrdersRequest("@"))])
    now = _wall_time()
    kinds = [kind for kind, allowed in KINDS.items() if what in {*allowed, AUTO}]
    before = [Order.read(kind, getattr(known, kind), now) for kind in kinds]
    # One moment for both kinds: it is one order, and one line in the log.
    at = max(now, *(order.at + 1 for order in before if order is not None), 0)
    given = dict.fromkeys(kinds, Order(what, at, by).write())
    (after,) = store.exchange([Ask(name, OrdersRequest("@", gives=True, **given))])
    if any(getattr(after, kind) != text for kind, text in given.items()):
        raise StoreError("it has a later order; are the clocks right?")


def _wall_time() -> int:
    return time.time_ns() // 1_000_000
