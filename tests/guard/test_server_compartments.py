"""A guard that stands for several servers, with a compartment for each."""

from __future__ import annotations

import pytest

from guardrails import BreakerPolicy, CircuitOpenError, ConfigurationError
from guardrails._guard.compartments import compartment_of_server, drop_compartment, guard_of_servers

POLICY = BreakerPolicy(consecutive_failures=2)


class Broken(Exception):
    """What a server's failure raises."""


def fail():
    raise Broken


@pytest.fixture
def guard():
    guard, policy = guard_of_servers("shards", 4, None, {"breaker": POLICY, "timeout": 3.0})
    assert policy == POLICY
    return guard


def test_servers_open_their_own_circuits_only(guard):
    first, second = (compartment_of_server(guard, name, 2, POLICY) for name in ("a:1", "b:1"))
    for _ in range(2):
        with pytest.raises(Broken):
            first.run(fail)
    with pytest.raises(CircuitOpenError):
        first.run(int)
    assert second.run(int) == 0
    assert (first.state, second.state, guard.state) == ("open", "closed", "disabled")
    assert first.timeout == guard.timeout == 3.0


def test_all_servers_failing_leaves_the_guard_itself_without_a_verdict(guard):
    parts = [compartment_of_server(guard, name, 2, POLICY) for name in ("a:1", "b:1")]
    for part in parts:
        for _ in range(2):
            with pytest.raises(Broken):
                part.run(fail)
    assert guard.run(int) == 0  # a third server may work


def test_a_server_has_one_compartment(guard):
    part = compartment_of_server(guard, "a:1", 2, POLICY)
    assert compartment_of_server(guard, "a:1", 2, POLICY) is part
    assert guard.compartments == (part,)
    assert repr(part.name) == "'a:1' of 'shards'"


def test_a_dropped_compartment_ends_its_calls(guard):
    part = compartment_of_server(guard, "a:1", 2, POLICY)
    gate = part.call_settings.gates[-1]
    with part.call():
        drop_compartment(guard, part)
        assert guard.compartments == ()
        assert "1/4 busy" in repr(guard)
    assert "0/4 busy" in repr(guard)
    assert gate not in guard.call_settings.gates[0].workload_gates
    drop_compartment(guard, part)  # once more changes nothing
    again = compartment_of_server(guard, "a:1", 2, POLICY)
    assert again is not part
    assert again.run(int) == 0


@pytest.mark.parametrize("by_hand", ["disable", "metrics_only"])
def test_manual_states_reach_all_servers_also_new_ones(guard, by_hand):
    part = compartment_of_server(guard, "a:1", 2, POLICY)
    getattr(guard, by_hand)()
    new = compartment_of_server(guard, "b:1", 2, POLICY)
    for _ in range(3):
        with pytest.raises(Broken):
            new.run(fail)
    assert part.state == new.state == {"disable": "disabled"}.get(by_hand, by_hand)
    guard.reset()
    assert part.state == new.state == "closed"


def test_force_open_refuses_all_servers_and_leaves_their_circuits(guard):
    part = compartment_of_server(guard, "a:1", 2, POLICY)
    guard.force_open()
    with pytest.raises(CircuitOpenError):
        part.run(int)
    assert part.state == "closed"
    guard.reset()
    assert part.run(int) == 0


def test_there_are_no_other_compartments(guard):
    part = compartment_of_server(guard, "a:1", 2, POLICY)
    for owner in (guard, part):
        with pytest.raises(ConfigurationError, match="has a compartment for each server, and no others"):
            owner.compartment("reports")


def test_settings_are_checked_and_filled_from_the_environment(monkeypatch):
    monkeypatch.setenv("GUARDRAILS_SHARDS_ENV_CONSECUTIVE_FAILURES", "7")
    monkeypatch.setenv("GUARDRAILS_SHARDS_ENV_TIMEOUT", "2")
    guard, policy = guard_of_servers("shards-env", 4, "shadow", {})
    assert policy.consecutive_failures == 7
    assert (guard.timeout, guard.mode) == (2, "shadow")
    with pytest.raises(ConfigurationError, match="timeout"):
        guard_of_servers("shards", 4, None, {"timeout": -1})
