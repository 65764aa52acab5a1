"""Replays of traces: they make the decisions that a running service makes, and count every call once."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter

import pytest

from guardrails import Guard
from guardrails._core.outcome import Outcome
from guardrails._guard.compartments import compartment_for, form_compartments
from guardrails._guard.guard import attach
from guardrails.errors import ConfigurationError, RejectedError
from guardrails.events import StateChanged
from guardrails.simulation.real_guard import SimulatedPool
from guardrails.simulation.replay import replay
from guardrails.simulation.settings import Policy, read_policies
from guardrails.simulation.trace import Trace


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer."""

    now = 0.0

    def time(self):
        return self.now

    def _run_once(self):
        if not self._ready and self._scheduled:
            self.now = max(self.now, self._scheduled[0].when())
        super()._run_once()


def trace_of(seed, calls=400, rate=60, hold=0.05, slow=(2.0, 4.0)):
    """Random calls of three routes, of which two are slow or fail for some time."""
    dice, moment, rows = random.Random(seed), 0.0, []
    for _ in range(calls):
        moment += dice.expovariate(rate)
        route = dice.choice("aab") if dice.random() < 0.9 else "c"
        duration, outcome = dice.expovariate(1 / hold), Outcome.SUCCESS
        if slow[0] < moment < slow[1] and route != "c":
            duration, outcome = dice.choice(
                [(0.001, 1), (6.0 + dice.random(), 0), (1.5, 1), (0.2, 2), (0.2, 3)]
            )
            duration += dice.random() / 100  # else it would end with the wait of another call
        rows.append((moment, route, duration, Outcome(outcome)))
    return Trace(rows)


class RunningService:
    """The same calls as asyncio tasks in front of a pool, on a loop in virtual time."""

    events = (StateChanged,)

    def __init__(self, trace, policy):
        self.trace, self.policy, self.loop = trace, policy, VirtualLoop()
        self.refused, self.waits, self.changes = Counter(), [], []
        self.guard = Guard(
            "pool",
            max_concurrent_calls=policy.max_concurrent_calls,
            max_wait_duration=policy.max_wait_duration,
            max_waiting=policy.max_waiting,
            timeout=policy.timeout,
            breaker=policy.breaker,
            listeners=[self],
            clock=self.loop.time,
            random=random.Random(1).random,
        )
        if policy.compartments == "auto":
            form_compartments(self.guard)
        attach(self.guard, SimulatedPool(policy.max_concurrent_calls))

    def __call__(self, event):
        self.changes.append((event.compartment or event.guard, event.new, event.cause, round(event.at, 6)))

    def run(self):
        try:
            self.loop.run_until_complete(self.everything())
        finally:
            self.loop.close()
        return self

    async def everything(self):
        await asyncio.gather(*(self.call(index) for index in range(len(self.trace))))

    def gates_of(self, route):
        forming = self.guard.call_settings.auto_compartments
        if forming is not None:
            gates = compartment_for(self.guard, route).call_settings.gates
            if forming.is_divided_for(gates[0]):
                return gates
        return self.guard.call_settings.gates

    async def call(self, index):
        await asyncio.sleep(self.trace.moments[index])
        route, held, asked = self.trace.names[self.trace.routes[index]], [], self.loop.time()
        try:
            for gate in self.gates_of(route):
                held.append((gate, await gate.check_out_async()))  # noqa: PERF401 - some are kept if one refuses
            if self.loop.time() > asked:
                self.waits.append(round(self.loop.time() - asked, 6))
            await self.work(index, held)
        except RejectedError as error:
            self.refused[route, error.reason] += 1
        finally:
            for gate, slot in reversed(held):
                gate.check_in(slot)

    async def work(self, index, held):
        duration, outcome = self.trace.durations[index], Outcome(self.trace.outcomes[index])
        if duration > self.policy.timeout:
            duration, outcome = self.policy.timeout, Outcome.FAILURE
        tickets = [(gate, gate.begin(slot)) for gate, slot in held]
        await asyncio.sleep(duration)
        for gate, ticket in reversed(tickets):
            gate.end(ticket, outcome)


@pytest.mark.parametrize("compartments", ["auto", "none"])
@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 60))]
)
def test_a_replay_decides_as_a_running_service_does(seed, compartments):
    """Refusals by route and reason, waits and openings are those of tasks that wait at the real gates."""
    trace = trace_of(seed)
    policy = Policy(max_concurrent_calls=4 + seed % 3, compartments=compartments, max_wait_duration=0.2)
    found = replay(trace, policy)
    real = RunningService(trace, policy).run()
    assert sum(real.refused.values()) > 10
    refused = {
        (name, reason): count for name, sums in found.routes.items() for reason, count in sums.refused.items()
    }
    waits = sorted(round(wait, 6) for wait in found.total().waits)
    assert refused == real.refused
    assert waits == sorted(real.waits)
    first = {
        (guard, at) for guard, new, cause, at in real.changes if new == "open" and cause != "probes_failed"
    }
    assert {(each.guard, round(each.at, 6)) for each in found.openings} == first


@pytest.mark.parametrize("seed", range(20))
def test_every_call_is_counted_once_and_no_slot_is_used_twice(seed):
    dice = random.Random(seed)
    trace = trace_of(seed, calls=300, rate=dice.choice([20, 100, 400]))
    slots = dice.randint(1, 12)
    found = replay(trace, Policy(max_concurrent_calls=slots, timeout=dice.choice([None, 0.5, 5.0])))
    total = found.total()
    assert total.calls == len(trace) == total.admitted + sum(total.refused.values())
    assert sum(found.admitted) == total.admitted
    assert sum(found.refused) == sum(total.refused.values())
    assert found.most_in_use == max(found.in_use) <= slots
    assert total.refused_good + total.refused_bad <= sum(total.refused.values())


def test_the_same_seed_gives_the_same_result():
    trace, policy = trace_of(1), Policy(max_concurrent_calls=3)
    assert replay(trace, policy, seed=5) == replay(trace, policy, seed=5)


def test_a_call_past_the_timeout_is_stopped_and_is_a_failure():
    trace = Trace([(float(n), "a", 3.0, Outcome.SUCCESS) for n in range(40)])
    found = replay(trace, Policy(max_concurrent_calls=10, timeout=0.5))
    assert found.openings[0].cause == "failure_rate"
    assert found.total().stopped == found.total().admitted


def test_waits_of_calls_that_did_not_wait_count_as_zero():
    trace = Trace(
        [
            (0.0, "a", 0.03, Outcome.SUCCESS),
            (0.01, "a", 1.0, Outcome.SUCCESS),
            (5.0, "a", 1.0, Outcome.SUCCESS),
        ]
    )
    total = replay(trace, Policy(max_concurrent_calls=1)).total()
    assert (total.admitted, total.wait(0.5)) == (3, 0.0)
    assert total.wait(0.99) == pytest.approx(0.02)


def test_a_replay_writes_no_line_into_the_log(caplog):
    logging.getLogger("guardrails").propagate = True
    found = replay(trace_of(2, slow=(1.0, 9.0)), Policy(max_concurrent_calls=3, compartments="none"))
    assert found.openings
    assert not caplog.records


@pytest.mark.parametrize("mode", ["off", "shadow"])
def test_the_environment_changes_no_replay(monkeypatch, mode):
    trace, policy = trace_of(3), Policy(max_concurrent_calls=3)
    before = replay(trace, policy)
    monkeypatch.setenv("GUARDRAILS_MODE", mode)
    monkeypatch.setenv("GUARDRAILS_POOL_TIMEOUT", "0.01")
    assert replay(trace, policy) == before


def test_the_longest_circuits_are_told_that_were_not_closed_at_the_end():
    trace = trace_of(1, slow=(1.0, 99.0))
    last = replay(trace, Policy(max_concurrent_calls=3, compartments="none")).openings[-1]
    assert not last.ended
    assert last.seconds > 0


def test_events_of_the_same_moment_keep_their_order():
    """A slot that becomes free at a moment is free for a call of that moment."""
    trace = Trace([(0.0, "a", 1.0, Outcome.SUCCESS), (1.0, "a", 1.0, Outcome.SUCCESS)])
    total = replay(trace, Policy(max_concurrent_calls=1, max_wait_duration=0)).total()
    assert total.admitted == 2


# --- settings --------------------------------------------------------------------------------------


def test_policies_come_from_files_and_from_texts(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text("max_concurrent_calls = 5\ntimeout = 2\n[breaker]\nminimum_number_of_calls = 3\n")
    small, large = read_policies([str(path), "slots=20,breaker.open_jitter=0"], ["max_wait_duration=0.1"])
    assert (small.label, small.max_concurrent_calls, small.timeout) == ("small", 5, 2)
    assert (small.max_wait_duration, small.breaker.minimum_number_of_calls) == (0.1, 3)
    assert (large.label, large.max_concurrent_calls, large.timeout) == (
        "slots=20,breaker.open_jitter=0",
        20,
        5.0,
    )
    assert large.breaker.open_jitter == 0


def test_without_a_policy_the_settings_are_one():
    (only,) = read_policies([], ["slots=3", "breaker=none", "timeout=none", "compartments=none"])
    assert (only.max_concurrent_calls, only.breaker, only.timeout, only.compartments) == (
        3,
        None,
        None,
        "none",
    )


@pytest.mark.parametrize(
    ("policies", "changes", "message"),
    [
        (["timeout=1"], [], "the number of slots is missing"),
        (["slots=0"], [], "max_concurrent_calls must be a whole number from 1"),
        (["slots=3,timeouts=1"], [], "has no option 'timeouts'; did you mean 'timeout'?"),
        (["slots=3,breaker.slow_call_duration=1"], [], "did you mean 'slow_call_duration_threshold'?"),
        (["slots=3"], ["breaker.failure_rate_threshold=50"], "rates are fractions: write 0.5"),
        (
            ["slots=3,breaker=none"],
            ["breaker.open_jitter=0"],
            "breaker.open_jitter has no effect with breaker=none",
        ),
        (["slots=3,breaker=5"], [], "breaker must be a BreakerPolicy or None"),
        (["slots=3,compartments=many"], [], "compartments must be 'auto' or 'none'"),
        (["slots=3"], ["timeout"], "'timeout' must be NAME=VALUE"),
        (["missing.toml"], [], "policy 'missing.toml': No such file or directory"),
    ],
)
def test_a_wrong_setting_is_named(policies, changes, message):
    with pytest.raises(ConfigurationError) as raised:
        read_policies(policies, changes)
    assert message in str(raised.value)


def test_a_file_that_is_no_toml_is_named(tmp_path):
    (tmp_path / "p.toml").write_text("slots 5")
    with pytest.raises(ConfigurationError, match="this is no TOML"):
        read_policies([str(tmp_path / "p.toml")], [])
