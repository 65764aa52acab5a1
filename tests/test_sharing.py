"""Compartments that form by themselves, without a pool: who they are, and what each may have."""

from __future__ import annotations

import asyncio

import pytest
from verbs import fail, tripping

from guardrails import RejectedError
from guardrails._core.gate import Refusal
from guardrails._core.shares import ACTIVE, share
from guardrails._guard import attach, sort_calls, sorts_calls, workload
from guardrails._outcome import Outcome
from guardrails._sharing import DEFAULT, MOST, OTHER

TOTAL = 10


@pytest.fixture
def db(make_guard):
    """A guard that sorts calls by itself and lets nobody wait."""
    guard = make_guard(max_concurrent_calls=TOTAL, max_wait_duration=0)
    sort_calls(guard)
    return guard


def a_call(door):
    ticket = door.enter()
    return lambda: door.leave(ticket, Outcome.SUCCESS)


def a_tasks_call(door):
    ticket = asyncio.run(door.enter_async())
    return lambda: door.leave(ticket, Outcome.SUCCESS)


def a_checkout(door):
    slot = door.check_out(None)
    return lambda: door.check_in(slot)


def a_tasks_checkout(door):
    slot = asyncio.run(door.check_out_async())
    return lambda: door.check_in(slot)


def a_checkout_without_waiting(door):
    slot = door.check_out_now()
    return lambda: door.check_in(slot)


def a_request(door):
    slot = asyncio.run(door.reserve())
    if isinstance(slot, Refusal):
        raise door.refused(slot)
    return lambda: door.give_back(slot)


WAYS = [a_call, a_tasks_call, a_checkout, a_tasks_checkout, a_checkout_without_waiting, a_request]


def hold(guard, way=a_call, most=99):
    """Takes as many slots of a compartment as can be had; returns how to give each back."""
    door, held = guard.passage.doors[0], []
    for _ in range(most):
        try:
            held.append(way(door))
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


def test_a_workload_is_known_by_its_key_and_called_by_a_name_nobody_else_has(db):
    """The same key finds the same compartment; a name that is taken gives way to the key."""
    first = workload(db, "shop.load", "load")
    second = workload(db, "admin.load", "load")
    assert (first.name, second.name) == ("load", "admin.load")
    assert workload(db, "shop.load", "load") is first
    assert workload(db, DEFAULT).name == DEFAULT
    assert db.compartments == (first, second, workload(db, DEFAULT))


def test_a_guard_that_does_not_sort_calls_is_its_own_only_workload(make_guard, db):
    """Asked which it is, it says so: nobody has to find out where its calls come from."""
    guard = make_guard()
    assert (sorts_calls(guard), sorts_calls(db)) == (False, True)
    assert workload(guard, "shop.load", "load") is guard
    assert guard.compartments == ()


def test_beyond_so_many_workloads_the_rest_is_one(db):
    """Whatever they are called; who formed before keeps its own."""
    parts = [workload(db, f"m.load_{number}", f"load_{number}") for number in range(MOST + 20)]
    assert len(set(parts)) == len(db.compartments) == MOST + 1
    assert {part.name for part in parts[MOST:]} == {OTHER}
    assert workload(db, "m.load_0") is parts[0]


def test_each_has_a_circuit_of_its_own(run, make_guard):
    """And what the guard itself is given."""
    db = make_guard(breaker=tripping(), max_wait_duration=0)
    sort_calls(db)
    sick, well = workload(db, "sick"), workload(db, "well")
    fail(run, sick)
    db.reset()
    assert (sick.state, well.state, db.state) == ("open", "closed", "closed")
    assert run(well, lambda: "fine") == "fine"


# --- what each may have --------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_one_alone_may_have_every_slot_and_one_of_two_its_share(db, clock, way):
    """From the moment somebody else asks; and all of it again when nobody has for a while."""
    shop, admin = workload(db, "shop"), workload(db, "admin")
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


def test_what_one_holds_beyond_its_share_it_keeps_until_it_is_given_back(db):
    """Nobody's call is stopped for it."""
    shop, admin = workload(db, "shop"), workload(db, "admin")
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
    workload(db, "shop")
    db.compartment("fixed", max_concurrent_calls=2)
    db.compartment("by hand").resize(1)
    for part in db.compartments:
        give_back(hold(part, most=1))
        clock.advance(ACTIVE)  # the next is alone, and might have it all
    db.resize(5)
    assert sizes(db) == {"shop": share(5), "fixed": 2, "by hand": 1}


# --- on a pool -----------------------------------------------------------------------------------


class Pool:
    """What an integration leaves with a guard."""

    most = TOTAL

    def __init__(self):
        self.detached = False

    def detach(self):
        self.detached = True


def test_a_detached_guard_forgets_who_was_inside(db):
    """The connections that are out come back to a pool that knows no guard any more."""
    pool = Pool()
    attach(db, pool)
    shop = workload(db, "shop")
    a_checkout(shop.passage.doors[0])
    a_checkout(db.passage.doors[0])
    db.detach()
    assert pool.detached
    assert (db.snapshot().in_use, shop.snapshot().in_use) == (0, 0)
    assert db.run(lambda: "fine") == shop.run(lambda: "fine") == "fine"


def test_a_name_that_is_too_long_for_a_guard_is_cut_and_stays_its_own(db):
    """Routes and functions have names of any length; nothing raises in the middle of a request."""
    routes = ["/" + "r" * 300 + end for end in ("a", "b")]
    parts = [workload(db, route) for route in routes]
    assert [len(part.name) for part in parts] == [200, 200]
    assert len({part.name for part in parts}) == 2
    assert [workload(db, route) for route in routes] == parts
    assert workload(db, "key", "n" * 201).name != workload(db, "other key", "n" * 202).name
