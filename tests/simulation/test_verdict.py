"""Fleets that judge a database together, by seed: when circuits open, whose, and how many probes."""

from __future__ import annotations

import pytest

from guardrails import BreakerPolicy
from guardrails.simulation.verdict_run import VerdictPlan, run_verdict

LONG = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1200)]
BLOCKS = [
    range(4),
    pytest.param(range(4, 20), marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
    *(pytest.param(range(k, k + 98), marks=LONG) for k in range(20, 1000, 98)),
]
by_seed = pytest.mark.parametrize("seeds", BLOCKS, ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")

FEW_CALLS = BreakerPolicy(minimum_number_of_calls=40)
"""One worker with a call a second never has so many in its window of ten seconds."""


@by_seed
def test_forty_workers_with_a_call_a_second_open_within_the_threshold_and_a_second_and_a_half(seeds):
    """The simulation sees that the threshold is reached up to 0.1 s late."""
    for seed in seeds:
        run = run_verdict(VerdictPlan(workers=40, policy=FEW_CALLS, seed=seed))
        opened = run.opened()
        assert len(opened) == 40
        assert {change.cause for change in run.changes if change.old == "closed"} == {"fleet"}
        assert run.reached - 1 <= max(opened.values()) <= run.reached + 1.4, f"seed {seed}"


@by_seed
def test_alone_none_of_them_opens(seeds):
    for seed in seeds:
        run = run_verdict(VerdictPlan(workers=40, policy=FEW_CALLS, together=False, seed=seed))
        assert run.opened() == {}
        assert run.refused == 0


@by_seed
def test_one_worker_with_a_broken_network_moves_no_other_circuit(seeds):
    for seed in seeds:
        run = run_verdict(
            VerdictPlan(workers=8, rate=4.0, broken=1, fails_from=1e9, fails_until=1e9, seed=seed)
        )
        assert set(run.opened()) == {0}, f"seed {seed}"


@by_seed
def test_a_round_has_at_most_three_probes_in_all(seeds):
    """A round that fails ends at the second failed probe."""
    for seed in seeds:
        run = run_verdict(VerdictPlan(workers=40, policy=FEW_CALLS, seed=seed))
        rounds = run.rounds()
        assert len(rounds) >= 3, f"seed {seed}: {rounds}"  # one takes ten seconds at most
        assert max(rounds) <= 3, f"seed {seed}: {rounds}"
        # A worker with too few calls loses the round to another, which makes what is left of it.
        assert sum(rounds[-2:]) >= 3, f"seed {seed}: {rounds}"


@by_seed
def test_all_circuits_close_soon_after_the_database_works(seeds):
    """One open period, a round of three probes at one worker, and a request of each.

    A worker with too few calls for a round keeps it for ten seconds; then it passes to another.
    """
    for seed in seeds:
        run = run_verdict(VerdictPlan(workers=40, policy=FEW_CALLS, seed=seed))
        assert run.closed() <= run.plan.fails_until + 24, f"seed {seed}"
