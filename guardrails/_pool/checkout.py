"""One connection in use and the slots it takes. Depends on the guard; must not import a pool or a driver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import ref

from guardrails._core.outcome import Outcome
from guardrails._guard.guard import Guard
from guardrails._guard.locked_gate import LockedGate
from guardrails._pool.frames import Caller, Site
from guardrails._pool.idle_hold import IdleHold
from guardrails._pool.limits import innermost
from guardrails._runtime.fork import check_process
from guardrails._runtime.scope import (
    RequestScope,
    Scope,
    ambient,
    current,
    time_left,
    touch,
    waiting_client,
)

__all__ = ["Checkout", "HeldCheckout", "Slots"]


class Slots:
    """A holder of slots, which releases each once.

    Attributes:
        slots: The gates that admitted it, the pool's own last, each with the slot's number.
    """

    __slots__ = ()

    slots: list[tuple[LockedGate, int]]

    def leaves_the_model(self, gates: Sequence[LockedGate]) -> bool:
        """Handles a checkout that its last gate, which does not enforce, has let in without a slot.

        If the gate would have refused it, the checkout leaves the model at each of its other gates.

        Args:
            gates: All gates that it has to pass, in their order.

        Returns:
            True if the gate would have refused it.
        """
        gate, number = self.slots[-1]
        if gate.core.mode != "shadow":
            return False
        waiting = gate.core.outside.get(number)
        if waiting is not None and not waiting.inner:
            waiting.owner = self
        if gate.core.outside.get(number) is not None:  # another thread may have ended the wait meanwhile
            return False
        for other, slot in self.slots[:-1]:
            other.step(other.core.end_in_model, slot, Outcome.ABANDONED, checkout=True)
        for further in gates[len(self.slots) :]:
            self.slots.append((further, further.let_pass()))
        return True

    def leave_model(self) -> None:
        """See ModelledCall."""
        for gate, slot in list(self.slots):
            gate.step(gate.core.end_in_model, slot, Outcome.ABANDONED, checkout=True, refused=True)

    def take_slots_now(self, gates: Sequence[LockedGate]) -> None:
        """Takes a slot at each gate without waiting, or none.

        Raises:
            RejectedError: A gate refused it.
        """
        try:
            for gate in gates:
                self.slots.append((gate, gate.check_out_now()))
                if self.slots[-1][1] < 0 and self.leaves_the_model(gates):
                    break
        except BaseException:
            self.release_slots()
            raise

    def slot_at(self, gate: LockedGate) -> int:
        """The slot at a gate; 0 without one."""
        return next((slot for each, slot in self.slots if each.core is gate.core), 0)

    def release_slots(self) -> None:
        """Releases the slots, each once."""
        while self.slots:
            gate, slot = self.slots[-1]
            try:
                gate.check_in(slot)
                self.slots.pop()
            except BaseException:  # Ctrl-C: repeat, because a number is released once only; then the others
                if self.slots and self.slots[-1] == (gate, slot):
                    self.slots.pop()
                    if slot:
                        gate.check_in(slot)
                self.release_slots()
                raise


class HeldCheckout(Slots):
    """A checkout as the registry of holders reads it: whose it is, since when, and where it was taken.

    Attributes:
        guard: The guard that admitted it: the pool's own, or a compartment of it.
        request_ref: Weak reference to the request it is for, or None. The request may keep the connection: if
            this kept the request, a connection that its code forgets would never be collected.
        route_name: The name of that request's route when the connection was handed out; None if unknown.
        site: The application's frames that asked for the connection.
        caller: The thread, task or greenlet that ran them.
        asked: When they asked for it, on the guard's clock.
        since: When they got it, on the guard's clock; 0.0 before.
        times: Where its times are counted; None before it was handed out and after its return.
        disposed: True if its pool was disposed of; its slots were released then.
        nested: True if the guard refused its holder a second connection.
        next_search: Earliest time of the next search for the code that keeps the connection.
        reported: True if it was reported as a leak.
        in_request_thread: True if the thread that asked for it is the one in which its request began.
    """

    __slots__ = (
        "asked",
        "caller",
        "disposed",
        "guard",
        "in_request_thread",
        "nested",
        "next_search",
        "reported",
        "request_ref",
        "route_name",
        "since",
        "site",
        "slots",
        "times",
    )

    guard: Guard
    request_ref: Callable[[], RequestScope | None] | None
    route_name: str | None
    site: Site
    caller: Caller
    asked: float
    since: float
    times: Any
    disposed: bool
    nested: bool
    next_search: float
    reported: bool
    in_request_thread: bool

    @property
    def is_left_behind(self) -> bool:
        """True if its request is over, and its thread serves others: what runs there now is not its holder.

        The same function may run there again, for the next request.
        """
        request = self.request
        return self.in_request_thread and (request is None or not request.is_open)

    @property
    def request(self) -> RequestScope | None:
        """The request it is for; None without one, or if nothing keeps it any more."""
        return None if self.request_ref is None else self.request_ref()

    @property
    def route(self) -> str | None:
        """The route template of the request that it is for; None if it is unknown."""
        request, name = self.request, self.route_name
        if request is not None:
            template = request.template()
            if template is not None:
                return template
            name = request.name or name  # Flask drops the route before the last parts of a body are made
        return None if name is None else name.partition(" ")[2] or name

    @property
    def busy(self) -> bool:
        """True while work runs on the connection."""
        raise NotImplementedError

    @property
    def held_on_purpose(self) -> bool:
        """True while its code waits on it as long as it takes: for messages, or for an element of a list."""
        return False

    def is_kept(self, now: Site | None) -> bool:
        """Returns True while the code that asked for the connection is on its caller's stack.

        Args:
            now: The application's frames of the caller now; None if it has ended.
        """
        codes = {code for code, _ in now or ()}
        return any(code in codes for code, _ in self.site)

    def held_object(self) -> object:
        """Returns the object that the holder's code keeps; None if it is gone."""
        raise NotImplementedError


class Checkout(HeldCheckout):
    """One connection out of its pool.

    Args:
        guard: The pool's guard.
        site: The application's frames that asked for the connection.
        caller: The thread, task or greenlet that ran them.

    Attributes:
        under_way: Gates, tickets and slots of the call that runs on the connection; empty while none does.
        hold: Whether work runs on the connection; None where the idle time is not limited.
        must_discard: True if work on it was stopped: a late cancel request would hit its next user.
        caller_cancelled: True if its caller was cancelled during work. The clean-up may then find the
            connection in any state, and is no evidence about the database.
    """

    __slots__ = ("caller_cancelled", "hold", "must_discard", "under_way")

    def __init__(self, guard: Guard, site: Site = (), caller: Caller = 0) -> None:
        self.guard = innermost(guard)
        self.slots = []
        self.under_way: Sequence[tuple[LockedGate, int, int]] = ()
        self.hold: IdleHold | None = None
        self.request_ref = self.route_name = None
        self.site = site
        self.caller = caller
        self.times: Any = None
        self.asked = self.since = self.next_search = 0.0
        self.must_discard = self.caller_cancelled = False
        self.in_request_thread = False
        self.disposed = self.nested = self.reported = False

    @property
    def busy(self) -> bool:
        """See HeldCheckout."""
        return bool(self.under_way)

    def held_object(self) -> object:
        """See HeldCheckout. None where the pool keeps all that its user has: nothing tells who keeps it."""
        return None

    def take_slots(self, wait: Callable[[Any], Any] | None = None) -> None:
        """Takes the slots and waits for them if necessary.

        Args:
            wait: Runs a coroutine to its end, for asyncio behind a greenlet; None waits in the thread.

        Raises:
            RejectedError: A gate refused it.
        """
        check_process()
        gates = self.guard.call_settings.gates
        budget = None if ambient.get() is None else self._budget(gates)
        try:
            for gate in gates:
                self.slots.append((gate, gate.check_out(wait, budget=budget)))
                if self.slots[-1][1] < 0 and self.leaves_the_model(gates):
                    break
        except BaseException:
            self.release_slots()
            raise

    async def take_slots_async(self) -> None:
        """Takes the slots in an asyncio task; see `take_slots`."""
        check_process()
        gates = self.guard.call_settings.gates
        budget = None if ambient.get() is None else self._budget(gates)
        try:
            for gate in gates:
                self.slots.append((gate, await gate.check_out_async(budget=budget)))
                if self.slots[-1][1] < 0 and self.leaves_the_model(gates):
                    break
        except BaseException:
            self.release_slots()
            raise

    def _budget(self, gates: Sequence[LockedGate]) -> float | None:
        """Seconds that the caller has left; refuses one that has none. Notes the request."""
        scope, budget = current(), None
        touch(scope, self.guard.call_settings)
        if scope is not None:
            if scope.request is not None:
                self.request_ref = ref(scope.request)
                self.in_request_thread = self.caller == scope.request.thread
            if gates[-1].core.enforces:
                waiting_client(scope, self.guard.name)
            budget = time_left(scope) if gates[-1].core.enforces else Scope.remaining(scope)
        if budget is not None and budget <= 0:
            gates[-1].refuse("deadline_spent")
        return budget
