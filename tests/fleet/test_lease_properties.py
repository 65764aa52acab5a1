"""The protocol of leases in virtual time, by seed: the invariant at every event, floors, fair shares."""

from __future__ import annotations

import functools
import inspect

import pytest

from guardrails.fleet._lease import LeaseTable
from guardrails.fleet._records import FORGET_AFTER, LEASE
from support.simulated_fleet import RENEWAL, Fleet

FORGET = FORGET_AFTER / 1000

BLOCKS = [
    range(3),
    pytest.param(range(3, 50), marks=pytest.mark.slow),
    *(
        pytest.param(range(k, k + 190), marks=[pytest.mark.slow, pytest.mark.long])
        for k in range(50, 1000, 190)
    ),
]
"""A thousand seeds, in blocks: a test for each would take longer to collect than to run."""


def by_seed(scenario):
    """Makes a test of a scenario that runs it with each seed of a block."""

    @pytest.mark.parametrize("seeds", BLOCKS, ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
    @functools.wraps(scenario)
    def test(seeds, **cases):
        for seed in seeds:
            try:
                scenario(seed, **cases)
            except AssertionError as error:
                error.add_note(f"seed {seed}")
                raise

    signature = inspect.signature(scenario)
    names = ["seeds", *list(signature.parameters)[1:]]
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    test.__signature__ = signature.replace(parameters=parameters)
    return test


def steady(seed, workers=8, **options):
    """A fleet whose workers know their leases."""
    fleet = Fleet(seed, **options)
    for _ in range(workers):
        fleet.join(demand=fleet.random.randint(0, 20))
    fleet.run(LEASE / 1000 + 3 * RENEWAL)
    return fleet


def move_load(fleet):
    for worker in fleet.workers:
        worker.demand = fleet.random.choice([0, 0, 1, 3, 10, 40])


@by_seed
def test_open_connections_never_exceed_the_budget_when_workers_die_leave_join_and_lose_messages(seed):
    """`Fleet.allowed` allows a floor that is borrowed from a silent worker, or taken without an answer."""
    fleet = steady(seed, loss=0.05)
    for _ in range(12):
        move_load(fleet)
        act = fleet.random.randrange(4)
        if act == 0 and len(fleet.workers) > 4:
            fleet.kill(fleet.random.choice(fleet.workers))
        elif act == 1 and len(fleet.workers) > 4:
            fleet.leave_orderly(fleet.random.choice(fleet.workers))
        elif act == 2 and len(fleet.workers) < 12:
            fleet.join(demand=fleet.random.randint(0, 20))
        fleet.run(fleet.random.uniform(0.1, 3))
    assert fleet.open <= fleet.budget


@by_seed
def test_cut_off_workers_and_the_rest_stay_within_the_budget_until_they_are_forgotten(seed):
    fleet = steady(seed)
    cut = fleet.random.sample(fleet.workers, fleet.random.randint(1, 4))
    for worker in cut:
        worker.cut_off = True
    until = fleet.now + FORGET - 2 * RENEWAL
    while fleet.now < until:
        move_load(fleet)
        fleet.run(min(until - fleet.now, fleet.random.uniform(0.1, 2)))
        assert not any(until > fleet.now for _, until in (worker.allowance for worker in fleet.workers))
    for worker in cut:
        worker.cut_off = False
    move_load(fleet)
    fleet.run(6)


@by_seed
def test_everybody_keeps_the_fair_share_while_the_store_is_gone(seed):
    fleet = steady(seed, workers=fleet_size(seed))
    fleet.frozen_until = fleet.now + 30
    for worker in fleet.workers:
        worker.demand = 40
    fleet.run(15)
    fair = fleet.budget // len(fleet.workers)
    assert [worker.limit for worker in fleet.workers] == [fair] * len(fleet.workers)
    fleet.run(12)
    fleet.run(3 + LEASE / 1000 + 5)  # it goes on, answers what has waited, and learns
    assert is_given_out(fleet), fleet.table()


def fleet_size(seed):
    return 2 + seed % 13


def is_given_out(fleet):
    """Whether the budget is given out: all that is wanted, and more but for the room for new workers."""
    given = sum(worker.limit for worker in fleet.workers)
    wanted = sum(worker.wants for worker in fleet.workers)
    return min(wanted, fleet.budget) <= given <= fleet.budget and given >= fleet.budget - fleet.budget // 10


@pytest.mark.parametrize("loss", ["flush", "backward", "forward"])
@by_seed
def test_a_store_that_lost_its_data_or_its_time_takes_nothing_from_anybody(seed, loss):
    fleet = steady(seed)
    for worker in fleet.workers:
        worker.demand = 10
    fleet.run(5)
    before = [worker.limit for worker in fleet.workers]
    if loss == "flush":
        fleet.leases = LeaseTable()
    else:
        fleet.store_jump += {"backward": -3600, "forward": 3600}[loss]
    for _ in range(10):
        fleet.run(0.25)
        assert [worker.limit for worker in fleet.workers] == before
    fleet.workers[0].demand = 0
    fleet.run(LEASE / 1000 + 3 * RENEWAL + 1)
    assert is_given_out(fleet), fleet.table()
    assert fleet.workers[0].limit < before[0]


@by_seed
def test_shares_are_fair_within_three_renewals_after_the_load_has_moved(seed):
    """Max-min: whoever has less than it wants has as much as anybody else, within one connection."""
    fleet = steady(seed, workers=4 + seed % 5)
    for _ in range(3):
        move_load(fleet)
        for worker in fleet.workers:
            worker.hold = 0.02
        fleet.run(3 * RENEWAL + 0.5)
        limits = {worker: worker.limit for worker in fleet.workers}
        assert is_given_out(fleet), fleet.table()
        for worker, limit in limits.items():
            assert limit >= worker.minimum
            if limit < worker.wants:
                assert limit >= max(limits.values()) - 1, fleet.table()


@by_seed
def test_no_worker_is_below_its_floor_for_longer_than_a_lease(seed):
    """Even where the budget is full of calls, of cut-off workers, or of workers that were all killed."""
    fleet = steady(seed, workers=10)
    for worker in fleet.workers:
        worker.demand = 40
    fleet.run(4)
    for worker in list(fleet.workers):
        if seed % 3 == 0:
            fleet.kill(worker)
        elif seed % 3 == 1:
            worker.cut_off = True
    new = [fleet.join(demand=5, minimum=1 + seed % 2) for _ in range(5)]
    fleet.run(LEASE / 1000)
    for _ in range(20):
        assert all(worker.limit >= worker.minimum for worker in new), fleet.table()
        fleet.run(0.5)


@by_seed
def test_capacity_of_the_dead_is_back_after_forget_after_and_of_those_who_left_after_a_renewal(seed):
    fleet = steady(seed)
    for worker in fleet.workers:
        worker.demand = 40
    fleet.run(4)
    dead, gone = fleet.workers[:2]
    fleet.leave_orderly(gone)
    fleet.run(2)
    assert is_given_out(fleet), fleet.table()
    fleet.kill(dead)
    fleet.run(FORGET + 1.2)
    assert is_given_out(fleet), fleet.table()


@by_seed
def test_a_stopped_worker_adds_at_most_what_it_has_open(seed):
    fleet = steady(seed)
    stopped = fleet.random.choice(fleet.workers)
    move_load(fleet)
    fleet.run(2)
    fleet.stop(stopped)
    kept = stopped.open
    check, fleet.check = fleet.check, lambda: None
    fleet.run(FORGET * 2)
    assert fleet.open <= fleet.budget + kept
    fleet.go_on(stopped)
    fleet.run(5)
    fleet.check = check
    fleet.run(5)
    assert is_given_out(fleet), fleet.table()
