"""Simulated fleets, by seed: the invariant at every event, floors, fair shares, and skipped renewals."""

from __future__ import annotations

import pytest

from guardrails.errors import ConfigurationError
from guardrails.fleet._lease import LeaseTable
from guardrails.fleet._records import LEASE
from guardrails.simulation import fleet_model
from guardrails.simulation.fleet_model import SimulatedFleet
from guardrails.simulation.fleet_run import FAULTS, FleetPlan, run_fleet

LONG = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1200)]
BLOCKS = [
    range(6),
    range(196, 197),  # a worker is killed just after the store has continued
    pytest.param(range(6, 40), marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
    *(pytest.param(range(k, k + 96), marks=LONG) for k in range(40, 1000, 96)),
]
"""A thousand seeds, in blocks."""

by_seed = pytest.mark.parametrize("seeds", BLOCKS, ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}")


def plan_of(seed, **options):
    """A small fleet with some of the faults; each seed has another size and other faults."""
    faults = tuple(fault for place, fault in enumerate(FAULTS) if (seed + 1) & (1 << place))
    workers = 2 + seed % 11
    settings = {
        "workers": workers,
        "budget": workers * (2 + seed % 7),
        "hours": 0.1,
        "faults": faults,
        "seed": seed,
    }
    return FleetPlan(**settings | options)


@by_seed
def test_a_fleet_keeps_its_budget_at_every_event(seeds):
    """Beyond it only what the protocol allows: floors that are borrowed, and safe shares of the forgotten."""
    for seed in seeds:
        run = run_fleet(plan_of(seed))
        assert run.sums.broken == [], f"seed {seed}"


@by_seed
def test_a_run_that_skips_renewals_is_equal_to_one_that_computes_all(seeds):
    for seed in seeds:
        plan = plan_of(seed)
        skipping, computing = run_fleet(plan), run_fleet(plan, skips=False)
        assert skipping.skipped > 0, f"seed {seed}"
        assert computing.skipped == 0
        assert vars(skipping.sums) == vars(computing.sums), f"seed {seed}"
        assert skipping.events == computing.events


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
def test_a_run_of_hundreds_of_workers_that_skips_renewals_is_equal_to_one_that_computes_all(seed):
    """Many start, wake and go back to rest within one second."""
    plan = FleetPlan(workers=600, budget=4800, hours=0.03, faults=FAULTS, seed=seed)
    skipping, computing = run_fleet(plan), run_fleet(plan, skips=False)
    assert vars(skipping.sums) == vars(computing.sums)


@by_seed
def test_no_worker_in_contact_is_below_its_floor_for_longer_than_a_lease(seeds):
    """While the store answers. One that starts while the budget is full of calls waits until some end."""
    for seed in seeds:
        faults = ("crash", "rolling-deploy") if seed % 2 else ("partition",)
        run = run_fleet(plan_of(seed, faults=faults, minimum=1 + seed % 2))
        assert run.sums.starved <= LEASE / 1000, f"seed {seed}"


@pytest.mark.parametrize(
    ("workers", "each", "minimum", "killed", "new", "seconds"),
    [
        (10, 2, 1, 0, 10, 0.1),
        (10, 4, 2, 0, 10, 1),
        (3, 4, 1, 0, 30, 5),
        (3, 1, 1, 0, 30, 5),
        (100, 2, 1, 0, 100, 3),
        (10, 4, 1, 1, 1, 0.1),
        (10, 1, 1, 1, 1, 0.1),
        (8, 3, 1, 2, 4, 0.5),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_workers_that_start_together_into_a_full_budget_have_their_floors_within_a_lease(
    seed, workers, each, minimum, killed, new, seconds
):
    """Also where they replace workers that were killed a moment before, whose connections are still reserved.

    ``each`` is an equal share of all that live at the end.
    """
    budget = each * (workers - killed + new)
    fleet = SimulatedFleet(
        seed, budget=budget, static=each, minimum=minimum, most=budget, hold=0.1, drift=0.05
    )
    for _ in range(workers):
        fleet.join(budget)
    fleet.run(12)
    assert sum(worker.limit for worker in fleet.workers.values()) == budget
    fleet.sums.starved = 0.0
    for worker in list(fleet.workers.values())[:killed]:
        fleet.kill(worker)
    for _ in range(new):
        fleet.after(fleet.random.uniform(0, seconds), fleet.join, None, 5)
    fleet.run(seconds + LEASE / 1000 + 0.1)
    assert all(worker.limit >= minimum for worker in fleet.workers.values()), table(fleet)
    assert 0.3 < fleet.sums.starved <= LEASE / 1000
    assert fleet.sums.broken == []


@pytest.mark.slow
@pytest.mark.parametrize("faults", [(), ("crash", "partition", "clock-drift")], ids=["calm", "faults"])
def test_most_renewals_of_a_large_fleet_are_not_computed(faults):
    """A full hour of a worker has 3,600 renewals. The start of all workers is in the figure, too."""
    run = run_fleet(FleetPlan(workers=1500, budget=12_000, hours=0.05, faults=faults))
    computed = run.sums.commands - run.skipped
    assert run.sums.broken == []
    assert computed < run.plan.workers * run.plan.hours * (600 if faults else 450)


def steady(seed, workers=8, budget=40, **options):
    """A fleet whose workers know their leases."""
    fleet = SimulatedFleet(seed, budget=budget, static=budget // workers, most=budget, hold=0.02, **options)
    for _ in range(workers):
        fleet.join(fleet.random.randint(0, 20))
    fleet.run(LEASE / 1000 + 4)
    return fleet


def is_given_out(fleet):
    """True if the budget is given out: all that is wanted, and more but for the room for new workers."""
    limits = [worker.limit for worker in fleet.workers.values()]
    wants = sum(worker.wants(worker.clock()) for worker in fleet.workers.values())
    return min(wants, fleet.budget) <= sum(limits) <= fleet.budget and sum(limits) >= fleet.budget * 0.9 - 1


def table(fleet):
    return [(each.name, each.demand, each.busy, each.limit, each.reply) for each in fleet.workers.values()]


@by_seed
def test_shares_are_fair_within_six_seconds_after_a_demand_has_risen(seeds):
    """Max-min: a worker that has less than it wants has as much as any other, within one connection.

    Callers that are refused are not seen: a worker that is far below its share doubles it with each renewal.
    """
    for seed in seeds:
        fleet = steady(seed, workers=4 + seed % 5, drift=0.05)
        for worker in fleet.random.sample(list(fleet.workers.values()), 2):
            worker.set_demand(worker.demand + fleet.random.choice([3, 10, 40]))
        fleet.run(6)
        assert is_given_out(fleet), table(fleet)
        most = max(worker.limit for worker in fleet.workers.values())
        for worker in fleet.workers.values():
            if worker.limit < worker.wants(worker.clock()):
                assert worker.limit >= most - 1, table(fleet)


def test_demand_that_falls_is_given_to_others_two_seconds_later():
    fleet = steady(1, workers=4, budget=40)
    for worker in fleet.workers.values():
        worker.set_demand(40)
    fleet.run(5)
    first, *others = fleet.workers.values()
    assert [worker.limit for worker in fleet.workers.values()] == [10, 10, 10, 10]
    first.set_demand(0)
    fleet.run(5.5)  # the peak of the last two seconds, and three renewals
    assert first.limit == 1
    assert [worker.busy for worker in others] == [13, 13, 13]


def test_workers_keep_the_equal_share_while_the_store_stands_still():
    fleet = steady(3, workers=5, budget=40)
    for worker in fleet.workers.values():
        worker.set_demand(40)
    fleet.freeze(30)
    fleet.run(15)
    assert {worker.limit for worker in fleet.workers.values()} == {8}
    fleet.run(25)
    assert is_given_out(fleet), table(fleet)
    assert fleet.sums.broken == []


def test_a_store_that_stands_still_accepts_no_more_connections_than_its_backlog_holds(monkeypatch):
    """The first request of each worker waits in a connection that is open already."""
    monkeypatch.setattr(fleet_model, "_BACKLOG", 2)
    fleet = steady(4, workers=5)
    for _ in range(2):
        fleet.freeze(10)
        before = fleet.sums.commands
        fleet.run(9.9)
        assert fleet.sums.commands == before
        fleet.run(0.1)
        assert fleet.sums.commands == before + 5 + 2
        fleet.run(8)


def test_a_budget_that_is_not_kept_is_reported(monkeypatch):
    """A rule that grants one connection too many."""
    renew = LeaseTable.renew

    def generous(self, *args):
        reply = renew(self, *args)
        return reply._replace(grant=reply.grant + 3)

    monkeypatch.setattr(LeaseTable, "renew", generous)
    fleet = steady(1)
    for worker in fleet.workers.values():
        worker.set_demand(40)
    fleet.run(5)
    assert fleet.sums.breaks >= len(fleet.sums.broken) > 0
    assert fleet.sums.broken[0].open > fleet.sums.broken[0].allowed >= fleet.budget


def test_a_fleet_serves_more_than_a_division_by_hand():
    sums = run_fleet(FleetPlan(workers=20, budget=160, hours=0.2)).sums
    assert sums.static_seconds < 0.8 * sums.served_seconds
    assert sums.served_seconds <= sums.demand_seconds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers must be a whole number from 1 to 100000"),
        ({"budget": 0}, "budget must be a whole number from 1"),
        ({"hours": 0}, "hours must be a number in"),
        ({"faults": ("fire",)}, "faults must be some of crash, partition, frozen-store, clock-drift"),
        ({"minimum": 3}, "4 workers need at least 3 connections each, more than the budget of 8"),
    ],
)
def test_a_wrong_plan_is_named(options, message):
    with pytest.raises(ConfigurationError) as raised:
        FleetPlan(**{"workers": 4, "budget": 8} | options)
    assert message in str(raised.value)
