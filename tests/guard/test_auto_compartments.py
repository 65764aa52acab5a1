"""Compartments that form by themselves, without a pool: who they are, and what each may have."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from guardrails import ConfigurationError, RejectedError
from guardrails._core.bulkhead import Waiter
from guardrails._core.gate import Gate, Refusal
from guardrails._core.outcome import Outcome
from guardrails._core.shares import ACTIVE, FRESH, share
from guardrails._guard.auto_compartments import DEFAULT, LOOK_AGAIN, MOST, OTHER
from guardrails._guard.compartments import (
    compartment_for,
    form_compartments,
    forms_compartments,
    set_compartments,
    shown_compartments,
)
from guardrails._guard.guard import attach
from guardrails._pool.checkout import Checkout
from guardrails.events import CallFinished, StateChanged
from guardrails.testing import open_circuit
from support.calls import fail, tripping
from support.polling import poll

TOTAL = 10


@pytest.fixture
def db(make_guard):
    """A guard with automatic compartments and without a queue."""
    guard = make_guard(max_concurrent_calls=TOTAL, max_wait_duration=0)
    form_compartments(guard)
    return guard


def a_call(gate):
    ticket = gate.enter()
    return lambda: gate.end(ticket, Outcome.SUCCESS, 1)


def a_tasks_call(gate):
    ticket = asyncio.run(gate.enter_async())
    return lambda: gate.end(ticket, Outcome.SUCCESS, 1)


def a_checkout(gate):
    slot = gate.check_out(None)
    return lambda: gate.check_in(slot)


def a_tasks_checkout(gate):
    slot = asyncio.run(gate.check_out_async())
    return lambda: gate.check_in(slot)


def a_checkout_without_waiting(gate):
    slot = gate.check_out_now()
    return lambda: gate.check_in(slot)


def a_request(gate):
    slot = asyncio.run(gate.reserve())
    if isinstance(slot, Refusal):
        raise gate.refusal_error(slot)
    return lambda: gate.check_in(slot)


WAYS = [a_call, a_tasks_call, a_checkout, a_tasks_checkout, a_checkout_without_waiting, a_request]


def hold(guard, way=a_call, most=99):
    """Takes as many slots of a compartment as can be had; returns how to give each back."""
    gate, held = guard.call_settings.gates[0], []
    for _ in range(most):
        try:
            held.append(way(gate))
        except RejectedError:
            break
    return held


def give_back(*helds):
    for held in helds:
        for end in held:
            end()


def sizes(guard):
    return {part.name: part.snapshot().max_concurrent_calls for part in guard.compartments}


# --- who they are --------------------------------------------------------------------------------


def test_a_workload_has_a_key_and_a_unique_name(db):
    """The same key finds the same compartment; a name that is taken gives way to the key."""
    first = compartment_for(db, "shop.load", "load")
    second = compartment_for(db, "admin.load", "load")
    assert (first.name, second.name) == ("load", "admin.load")
    assert compartment_for(db, "shop.load", "load") is first
    assert compartment_for(db, DEFAULT).name == DEFAULT
    assert db.compartments == (first, second, compartment_for(db, DEFAULT))


def test_a_guard_without_automatic_compartments_is_its_only_workload(make_guard, db):
    """So the origin of its calls need not be determined."""
    guard = make_guard()
    assert (forms_compartments(guard), forms_compartments(db)) == (False, True)
    assert compartment_for(guard, "shop.load", "load") is guard
    assert guard.compartments == ()


def test_workloads_beyond_the_maximum_share_one_compartment(db):
    """Whatever they are called; who formed before keeps its own."""
    parts = [compartment_for(db, f"m.load_{number}", f"load_{number}") for number in range(MOST + 20)]
    assert len(set(parts)) == len(db.compartments) == MOST + 1
    assert {part.name for part in parts[MOST:]} == {OTHER}
    assert compartment_for(db, "m.load_0") is parts[0]


def test_each_compartment_has_a_circuit_of_its_own(run, make_guard):
    """And what the guard itself is given."""
    db = make_guard(breaker=tripping(), max_wait_duration=0)
    form_compartments(db)
    sick, well = compartment_for(db, "sick"), compartment_for(db, "well")
    fail(run, sick)
    db.call_settings.gates[0].step(db.call_settings.gates[0].core.set_state, "reset")  # it alone
    assert (sick.state, well.state, db.state) == ("open", "closed", "closed")
    assert run(well, lambda: "fine") == "fine"


def test_a_name_made_of_code_is_never_too_long(db):
    """It is cut, and what was cut off still tells two apart."""
    names = ["GET /" + "x" * 300 + end for end in "ab"]
    parts = [compartment_for(db, name) for name in names]
    assert len({part.name for part in parts}) == 2
    assert all(len(part.name) <= 200 and part.name.startswith("GET /xxx") for part in parts)
    assert [compartment_for(db, name) for name in names] == parts


def test_a_guard_may_have_no_compartments_at_all(make_guard):
    """Asked for one, it says which setting that was."""
    db = make_guard()
    set_compartments(db, "none")
    assert compartment_for(db, "shop.load") is db
    with pytest.raises(ConfigurationError, match="made with compartments='none'; with 'declared' or 'auto'"):
        db.compartment("reports")


# --- what each may have --------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_the_only_active_part_may_use_every_slot_and_one_of_two_its_share(db, clock, way):
    """From the first request of another part; and every slot again after a while without one."""
    shop, admin = compartment_for(db, "shop"), compartment_for(db, "admin")
    held = hold(shop, way)
    assert len(held) == TOTAL
    give_back(held)
    others = hold(admin, way, most=1)
    held = hold(shop, way)
    assert len(held) == share(TOTAL)
    give_back(held, others)
    clock.advance(ACTIVE)
    held = hold(shop, way)
    assert len(held) == TOTAL
    give_back(held)


def test_slots_beyond_a_share_are_kept_until_they_are_released(db):
    """No call is stopped for the new part."""
    shop, admin = compartment_for(db, "shop"), compartment_for(db, "admin")
    held = hold(shop)
    others = hold(admin, most=1)
    assert shop.snapshot().in_use == TOTAL
    assert hold(shop) == []
    give_back(held[:4])
    again = hold(shop)
    assert len(again) == share(TOTAL) - (TOTAL - 4)
    give_back(held[4:], again, others)


def test_a_size_given_by_hand_stays_and_the_others_follow_the_guard(db, clock):
    """Given at the start or later; the shares are of the slots there are now."""
    compartment_for(db, "shop")
    db.compartment("fixed", max_concurrent_calls=2)
    compartment_for(db, "by hand").resize(1)
    for part in db.compartments:
        give_back(hold(part, most=1))
        clock.advance(ACTIVE)  # the next is alone, and might have it all
    db.resize(5)
    assert sizes(db) == {"shop": share(5), "fixed": 2, "by hand": 1}


def test_a_declared_compartment_of_the_default_size_follows_the_guard(db):
    """As long as its own number was not set."""
    part = db.compartment("reports")
    db.resize(5)
    assert sizes(db) == {"reports": share(5)}
    db.resize(1)
    assert sizes(db) == {"reports": 1}
    db.resize(5)
    part.resize(2)
    db.resize(4)
    assert sizes(db) == {"reports": 2}


# --- on a pool -----------------------------------------------------------------------------------


class Pool:
    """An integration's attachment."""

    most = TOTAL
    upkeep = None

    def __init__(self):
        self.detached = False

    def detach(self):
        self.detached = True

    def figures(self):
        return None


@pytest.fixture
def pooled(make_guard):
    """Makes a guard in front of a pool, with automatic compartments and without a queue."""

    def make(**options):
        guard = make_guard(**({"max_concurrent_calls": TOTAL, "max_wait_duration": 0} | options))
        form_compartments(guard)
        attach(guard, Pool())
        return guard

    return make


def check_out(db, key=DEFAULT, times=1):
    """Checkouts of a workload, as many as there is room for; returns how to give each back."""
    held = []
    for _ in range(times):
        try:
            with compartment_for(db, key).call():
                checkout = Checkout(db)
                checkout.take_slots()
        except RejectedError:
            break
        held.append(checkout.release_slots)
    return held


def statement(db, key, outcome):
    """One checkout with one statement that ends so; returns whether it could start."""
    try:
        with compartment_for(db, key).call():
            checkout = Checkout(db)
            checkout.take_slots()
    except RejectedError:
        return False
    for gate, slot in checkout.slots:
        gate.end(gate.begin(slot), outcome)
    checkout.release_slots()
    return True


def shown(db):
    return [part.name for part in shown_compartments(db)]


def test_a_guard_with_one_workload_is_that_workload(pooled):
    """It passes one gate, has every slot however long its calls take, and is shown as one."""
    db = pooled()
    held = check_out(db, "shop", times=99)
    assert len(held) == db.snapshot().admitted == TOTAL
    assert ([part.snapshot().admitted for part in db.compartments], shown(db)) == ([0], [])
    give_back(held)


def test_the_second_workload_divides_the_guard(pooled):
    """From then on both are shown, and the first has taken its figures along."""
    db = pooled(breaker=tripping(sliding_window_size=10, minimum_number_of_calls=10))
    for _ in range(3):
        statement(db, "shop", Outcome.SUCCESS)
    statement(db, "shop", Outcome.FAILURE)
    statement(db, "admin", Outcome.SUCCESS)
    assert shown(db) == ["shop", "admin"]
    shop, admin = (part.snapshot() for part in db.compartments)
    assert (shop.admitted, shop.succeeded, shop.failed, shop.calls, shop.failures) == (4, 3, 1, 4, 1)
    assert (admin.admitted, admin.succeeded, admin.failed, admin.calls) == (1, 1, 0, 1)
    assert (db.snapshot().admitted, db.snapshot().calls) == (5, 5)


def test_queries_of_a_start_up_are_no_workload_of_their_own(pooled):
    """It makes room for the first that has a name; once it is there again it is one."""
    db = pooled()
    statement(db, DEFAULT, Outcome.SUCCESS)
    statement(db, "shop", Outcome.SUCCESS)
    assert (shown(db), db.snapshot().admitted) == ([], 2)
    statement(db, DEFAULT, Outcome.SUCCESS)
    assert shown(db) == [DEFAULT, "shop"]


def test_calls_in_flight_without_a_known_workload_are_a_workload(pooled):
    """It holds a slot when the first with a name comes, and may hold more."""
    db = pooled()
    held = check_out(db, DEFAULT)
    statement(db, "shop", Outcome.SUCCESS)
    assert shown(db) == [DEFAULT, "shop"]
    give_back(held)


def test_a_new_part_gets_the_first_slots_that_are_released(pooled, clock):
    """The one that had them all gets none before it is within its share again."""
    db = pooled()
    held = check_out(db, "shop", times=99)
    assert check_out(db, "admin") == []
    give_back(held[:3])
    clock.advance(FRESH)
    assert check_out(db, "shop") == []
    others = check_out(db, "admin", times=99)
    assert len(others) == 3
    give_back(held[3:], others)
    again = check_out(db, "shop", times=99)
    assert len(again) == share(TOTAL)
    give_back(again)


def test_a_circuit_that_the_only_workload_opened_does_not_refuse_the_second(pooled):
    """It becomes that workload's own."""
    db = pooled(breaker=tripping())
    statement(db, "shop", Outcome.FAILURE)
    assert db.state == "open"
    assert not statement(db, "shop", Outcome.SUCCESS)
    assert statement(db, "admin", Outcome.SUCCESS)
    assert {part.name: part.state for part in db.compartments} == {"shop": "open", "admin": "closed"}
    assert db.state == "closed"
    assert not statement(db, "shop", Outcome.SUCCESS)


def test_a_declared_compartment_keeps_its_size_and_divides_the_guard(pooled, clock):
    """Whether or not others are active; their limits follow."""
    db = pooled()
    statement(db, "shop", Outcome.SUCCESS)
    reports = db.compartment("reports")
    assert shown(db) == ["shop", "reports"]
    clock.advance(ACTIVE)
    with reports.call():
        held = [Checkout(db) for _ in range(TOTAL)]
    for checkout in held[: share(TOTAL)]:
        checkout.take_slots()
    with pytest.raises(RejectedError):
        held[-1].take_slots()
    assert len(check_out(db, "shop", times=99)) == TOTAL - share(TOTAL)
    for checkout in held:
        checkout.release_slots()
    db.call_settings.gates[0].step(lambda _: db.call_settings.gates[0].core.drop_calls_and_waiters())
    compartment_for(db, "shop").call_settings.gates[0].core.drop_calls_and_waiters()


def test_slow_calls_get_no_slot_beyond_the_share_however_idle_the_others_are(pooled, clock):
    """A part that rarely requests a slot gets one."""
    db = pooled()
    statement(db, "admin", Outcome.SUCCESS)
    statement(db, "shop", Outcome.SUCCESS)
    clock.advance(2 * ACTIVE)
    held = check_out(db, "shop")
    clock.advance(1)
    held += check_out(db, "shop", times=99)
    assert len(held) == share(TOTAL)
    others = check_out(db, "admin", times=99)
    assert len(others) == TOTAL - share(TOTAL)
    give_back(held, others)


def test_a_limit_is_computed_under_the_lock_if_a_call_ends_meanwhile(pooled, monkeypatch):
    """The look without the lock gives up when another thread changes what it reads."""
    db = pooled()
    for key in ("shop", "admin", "items"):
        give_back(check_out(db, key))
    busy = check_out(db, "admin", times=share(TOTAL))
    ages = iter([RuntimeError("dictionary changed size during iteration"), None])

    def age_of_oldest(gate, now):
        age = next(ages)
        if age is not None:
            raise age

    monkeypatch.setattr(Gate, "age_of_oldest", age_of_oldest)
    held = check_out(db, "shop", times=1)
    assert next(ages, "used") == "used"
    assert len(held) == 1
    give_back(busy, held)


def test_slots_that_others_have_are_no_evidence_against_a_compartment(pooled):
    """In a full pool a few long calls hold all that is left for their compartment. That is no stall."""
    db = pooled()
    for key in ("shop", "admin", "items"):
        give_back(check_out(db, key))
    busy = check_out(db, "admin", times=share(TOTAL))
    held = check_out(db, "shop", times=99)
    part = compartment_for(db, "shop")
    assert part.snapshot().max_concurrent_calls == len(held) == 2
    assert part.call_settings.gates[0].core.breaker.stall_slots == share(TOTAL)
    give_back(busy, held)


def test_a_caller_that_is_woken_looks_no_more(pooled):
    """It has its slot, so the limits are not computed again for it."""
    db = pooled()
    for key in ("shop", "admin"):
        give_back(check_out(db, key))
    gate, waiter = compartment_for(db, "shop").call_settings.gates[0], Waiter()
    gate.member.is_cut = True
    parts = gate._parts_of_wait(waiter, 1.0)
    assert next(parts) == LOOK_AGAIN
    waiter.verdict = "granted"
    assert next(parts) == pytest.approx(1.0 - LOOK_AGAIN)
    assert gate.member.is_cut, "nothing was computed"
    assert list(parts) == []


def test_a_size_given_by_hand_to_the_only_active_part_stays_when_another_asks(pooled, clock):
    """Its limit is not computed any more."""
    db = pooled()
    for key in ("shop", "admin"):
        give_back(check_out(db, key))
    clock.advance(2 * ACTIVE)
    held = check_out(db, "shop", times=share(TOTAL) + 1)
    compartment_for(db, "shop").resize(3)
    give_back(check_out(db, "admin"), held)
    assert sizes(db) == {"shop": 3, "admin": share(TOTAL)}


def test_a_declared_compartment_takes_its_slots_while_few_are_left(pooled):
    """Its size is its own, so there is nothing to compute."""
    db = pooled()
    reports = db.compartment("reports", max_concurrent_calls=2)
    for key in ("shop", "admin"):
        give_back(check_out(db, key))
    busy = check_out(db, "admin", times=share(TOTAL))
    gates = reports.call_settings.gates
    held = [(gate, gate.check_out_now()) for gate in gates]
    assert reports.snapshot().max_concurrent_calls == 2
    assert not gates[0].member.is_cut
    for gate, slot in reversed(held):
        gate.check_in(slot)
    give_back(busy)


@pytest.mark.parametrize("flavour", ["thread", "task"])
def test_a_caller_that_waits_gets_a_slot_that_another_compartment_returns(pooled, flavour):
    """Although nobody wakes it: while slots are kept for others it looks again."""
    db = pooled(clock=time.monotonic, max_wait_duration=5.0)
    for key in ("shop", "admin", "items", "quiet"):
        give_back(check_out(db, key))
    busy = check_out(db, "admin", times=share(TOTAL) - 1)
    busy += check_out(db, "items", times=TOTAL - share(TOTAL) - 1)
    first = check_out(db, "shop")
    part = compartment_for(db, "shop")
    gate = part.call_settings.gates[0]
    got = []

    def wait_in_thread():
        got.append(gate.check_out(None))

    async def wait_in_task():
        got.append(await gate.check_out_async())

    thread = threading.Thread(
        target=wait_in_thread if flavour == "thread" else lambda: asyncio.run(wait_in_task())
    )
    thread.start()
    poll(lambda: part.snapshot().waiting == 1, "it waits")
    give_back(busy)
    thread.join(5)
    assert got, "it has a slot"
    gate.check_in(got[0])
    give_back(first)


# --- what is done to the guard by hand -----------------------------------------------------------


@pytest.fixture
def divided(pooled):
    """A guard with two workloads, each call of which opens its circuit if it fails."""
    heard = []

    def make():
        db = pooled(breaker=tripping(), listeners=[heard.append])
        for key in ("shop", "admin"):
            statement(db, key, Outcome.SUCCESS)
        statement(db, "shop", Outcome.FAILURE)
        db.call_settings.gates[0].step(db.call_settings.gates[0].core.set_state, "reset")  # it alone
        heard.clear()
        return db, heard

    return make


@pytest.mark.parametrize(
    ("move", "state"), [("reset", "closed"), ("disable", "disabled"), ("metrics_only", "metrics_only")]
)
def test_manual_transitions_of_the_guard_apply_to_automatic_compartments(divided, move, state):
    """Later ones included. Only the transitions of circuits that were open are reported."""
    db, heard = divided()
    getattr(db, move)()
    assert {part.state for part in db.compartments} == {db.state} == {state}
    later = {"closed"} if state == "closed" else {state}
    assert {compartment_for(db, "later").state} == later
    assert all(statement(db, key, Outcome.SUCCESS) for key in ("shop", "admin", "later"))
    told = [(event.compartment, event.old, event.new) for event in heard if isinstance(event, StateChanged)]
    assert told == [(None, "closed", state)] * (state != "closed") + [("shop", "open", state)]
    assert {event.guard for event in heard} == {"db"}


def test_a_guard_that_is_forced_open_leaves_the_circuits_of_its_compartments(divided):
    """As they were; `reset` closes them, too."""
    db, _ = divided()
    db.force_open()
    assert not any(statement(db, key, Outcome.SUCCESS) for key in ("shop", "admin"))
    assert [part.state for part in db.compartments] == ["open", "closed"]
    db.reset()
    assert all(statement(db, key, Outcome.SUCCESS) for key in ("shop", "admin"))


def test_the_testing_kit_opens_the_guard_for_all_and_closes_all(divided):
    """Also for a circuit that was open before."""
    db, _ = divided()
    with open_circuit(db):
        assert not any(statement(db, key, Outcome.SUCCESS) for key in ("shop", "admin"))
    assert all(statement(db, key, Outcome.SUCCESS) for key in ("shop", "admin"))


@pytest.mark.parametrize("move", [lambda part: part.force_open(), lambda part: part.resize(1), open_circuit])
def test_settings_of_the_only_workload_apply(pooled, move):
    """It is not passed by for being the only one."""
    db = pooled()
    statement(db, "shop", Outcome.SUCCESS)
    move(compartment_for(db, "shop"))
    assert len(check_out(db, "shop", times=2)) < 2
    assert shown(db) == ["shop"]
    db.call_settings.gates[0].core.drop_calls_and_waiters()
    compartment_for(db, "shop").call_settings.gates[0].core.drop_calls_and_waiters()


def test_each_end_of_a_call_is_reported_once(divided):
    """By the guard. A refusal is reported by the gate that refused."""
    db, heard = divided()
    statement(db, "admin", Outcome.SUCCESS)
    assert [(type(event), event.guard) for event in heard] == [(CallFinished, "db")]


def test_a_detached_guard_forgets_its_calls(pooled):
    """The connections that are out come back to a pool that knows no guard any more."""
    db = pooled()
    check_out(db, "shop")
    check_out(db, "admin")
    db.detach()
    shop = compartment_for(db, "shop")
    assert (db.snapshot().in_use, shop.snapshot().in_use) == (0, 0)
    assert db.run(lambda: "fine") == shop.run(lambda: "fine") == "fine"


def test_a_name_that_is_too_long_for_a_guard_is_cut_and_stays_its_own(db):
    """Routes and functions have names of any length; nothing raises in the middle of a request."""
    routes = ["/" + "r" * 300 + end for end in ("a", "b")]
    parts = [compartment_for(db, route) for route in routes]
    assert [len(part.name) for part in parts] == [200, 200]
    assert len({part.name for part in parts}) == 2
    assert [compartment_for(db, route) for route in routes] == parts
    assert compartment_for(db, "key", "n" * 201).name != compartment_for(db, "other key", "n" * 202).name
