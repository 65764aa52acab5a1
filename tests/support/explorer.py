"""Every order in which a few actors can make their moves on one gate, and what must hold after each.

An actor is a generator. What it yields is the name of the move it makes next, alone or with a question that
must be answered with yes before it can: ``yield "wake", place_has_a_verdict``. A move is everything up to
the next yield, as the shell makes each of them under one lock.
"""

from __future__ import annotations

from guardrails._core.breaker import Transition
from guardrails._core.gate import Refusal
from guardrails._core.outcome import Outcome
from support.shell import FastPaths, Shell


class World:
    """A gate, and what its callers and an onlooker know without asking it.

    Attributes:
        holding: What was admitted and has not been given back, by ticket or by the number of its slot.
        queue: The places of who waits, in the order in which they came.
        granted: The waiters with a granted slot that they have not taken yet.
        told: The places that were woken.
        probes: Calls that were admitted in this half-open round and ended with evidence, or not yet.
    """

    def __init__(self, gate, probes_at_most=1):
        self.gate = gate
        self.shell = Shell(gate)
        self.now = 0.0
        self.holding = set()
        self.queue, self.granted, self.told = [], [], []
        self.probes = set()
        self._probes_at_most = probes_at_most
        self._taken = 0

    # --- moves --------------------------------------------------------------------------------

    def enter(self, place, *, checkout=False):
        """Asks for a slot: True when it is there, False when refused, None when it is waited for."""
        waiting = bool(self.queue)
        if checkout:
            verdict = FastPaths(self.gate).check_out(self.now) or self.gate.check_out(self.now, place)
        else:
            verdict = self.shell.enter(self.now, place)
        if verdict is None:
            self.queue.append(place)
        assert not (waiting and isinstance(verdict, int)), "a new caller overtook the queue"
        return self._admit(verdict, checkout=checkout)

    def wake(self, place, *, checkout=False):
        """Ends a wait, whether anybody granted a slot or not."""
        wake = self.gate.woken_checkout if checkout else self.gate.woken
        verdict = wake(self.now, place)
        self._stop_waiting(place)
        return self._admit(verdict, checkout=checkout)

    def abandon(self, place):
        """Leaves a place for good."""
        self.gate.abandon(self.now, place)
        self._stop_waiting(place)

    def leave(self, ticket, outcome):
        """Ends a call, the fast path if it can; twice, of which the second time must do nothing."""
        if outcome is Outcome.ABANDONED:
            self.probes.discard(ticket)
        assert self.shell.leave(self.now, ticket, outcome), "a call under way could not be ended"
        self.holding.remove(("call", ticket))
        taken = self.gate.bulkhead.taken
        assert self.gate.leave(self.now, ticket, outcome) is None, "a ticket was settled twice"
        assert self.gate.bulkhead.taken == taken, "a ticket gave two slots back"

    def check_in(self, slot):
        """Gives a checkout's slot back, twice likewise."""
        if not FastPaths(self.gate).checks_in(self.now, slot):
            self.gate.check_in(self.now, slot)
        self.holding.remove(("checkout", slot))
        taken = self.gate.bulkhead.taken
        self.gate.check_in(self.now, slot)
        assert self.gate.bulkhead.taken == taken, "a checkout gave two slots back"

    def _admit(self, verdict, *, checkout):
        if isinstance(verdict, Refusal) or verdict is None:
            return verdict
        assert self.gate.breaker.state not in {"open", "forced_open"}, "an open circuit admitted a caller"
        self.holding.add(("checkout" if checkout else "call", verdict))
        if self.gate.breaker.state == "half_open" and not checkout:
            self.probes.add(verdict)
        return verdict

    def _stop_waiting(self, place):
        for places in (self.queue, self.granted, self.told):
            if place in places:
                places.remove(place)

    # --- what must hold -----------------------------------------------------------------------

    def look(self):
        """Checks everything that must hold between two moves."""
        gate, bulkhead = self.gate, self.gate.bulkhead
        for item in gate.outbox:
            if isinstance(item, Transition):
                self.probes = set()
            else:
                assert item not in self.told, "a waiter was woken twice"
                self.told.append(item)
        gate.outbox.clear()
        verdicts = [place.verdict for place in self.queue]
        granted = [place for place in self.queue if place.verdict == "granted"]
        assert verdicts[: len(granted)] == ["granted"] * len(granted), "a waiter overtook another"
        self.granted += granted
        ended = [place for place in self.queue if place.verdict is not None]
        assert all(place in self.told for place in ended), "a waiter was not told its verdict"
        self.queue = [place for place in self.queue if place.verdict is None]
        assert list(bulkhead.queue) == self.queue, "the queue is not who waits"
        taken, self._taken = self._taken, bulkhead.taken
        assert bulkhead.taken == len(self.holding) + len(self.granted), "slots are not conserved"
        assert bulkhead.taken <= max(taken, bulkhead.usable), "more are inside than there are usable slots"
        assert not (self.queue and bulkhead.taken < bulkhead.usable), "a caller waits beside a free slot"
        if gate.breaker.state in {"open", "half_open", "forced_open"}:
            assert not self.queue, "a caller waits at a circuit that is not closed"
        if gate.breaker.state == "half_open":
            assert len(self.probes) <= self._probes_at_most, "too many probes were let in"
            assert len(gate.breaker.permits) <= self._probes_at_most, "too many permits were given out"

    def look_at_the_end(self):
        """Checks that nothing is left of anybody."""
        gate = self.gate
        assert (gate.bulkhead.taken, self.queue, self.told, gate.checkouts) == (0, [], [], {})
        assert not gate.breaker.in_flight
        assert not gate.breaker.permits


class Run:
    """One schedule of a story, step by step."""

    def __init__(self, story):
        self.world, actors = story()
        self._actors = dict(actors)
        self._next = {name: self._ask(name) for name in list(self._actors)}
        self.schedule = []
        self.log = []

    def ready(self):
        """The actors that can make a move now."""
        return [name for name in self._actors if self._next[name][1]()]

    def step(self, name):
        """Has an actor make its move, and looks at the world."""
        self.schedule.append(name)
        self.log.append(f"{name}: {self._next[name][0]}")
        self._next[name] = self._ask(name)
        self.world.look()

    def end(self):
        """Checks that all actors have finished when no actor can move."""
        assert not self._actors, f"waits for ever: {', '.join(self._actors)}"
        self.world.look_at_the_end()

    def _ask(self, name):
        try:
            move = next(self._actors[name])
        except StopIteration:
            del self._actors[name]
            return "done", lambda: False
        return move if isinstance(move, tuple) else (move, lambda: True)


def explore(story, at_most=50_000):
    """Runs every schedule of a story, and returns how many there are.

    Args:
        story: Makes a fresh world and its actors, by name.
        at_most: More schedules than this are an error: a story must be small enough to be told whole.

    Raises:
        AssertionError: Something did not hold; the message is the schedule that led there.
    """
    schedules = 0
    branches = [[]]
    while branches:
        schedules += 1
        assert schedules <= at_most, "the story is too long"
        run = Run(story)
        try:
            for name in branches.pop():
                run.step(name)
            while ready := run.ready():
                branches += [[*run.schedule, other] for other in ready[1:]]
                run.step(ready[0])
            run.end()
        except AssertionError as fault:
            steps = "\n".join(f"  {number}. {line}" for number, line in enumerate(run.log, start=1))
            raise AssertionError(f"{fault}, after\n{steps}") from fault
    return schedules
