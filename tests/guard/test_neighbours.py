"""A locked table refuses no call of other workloads, a database that is down refuses all; in fake time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrails import BreakerPolicy
from guardrails._core.outcome import Outcome
from support.simulated_service import Service, frozen, generator, locked, quick, refuses, services

RATES = (0.1, 0.2, 0.4, 1, 2, 4, 10)
COMPARTMENTS = ("declared", "auto")


@pytest.fixture(autouse=True)
def _end_all():
    """Nothing stays under way after a test."""
    yield
    while services:
        services.pop().close()


def lock(service, names, *, busy=15, neighbours, rate, seed=None, until=60.0):
    """Fifteen seconds of health, then thirty in which some tables are locked."""
    random = None if seed is None else generator(seed)
    for name in names:
        service.traffic(name, busy, until=until, poisson=random)
        service.at(15.0, lambda name=name: service.answers.__setitem__(name, locked(45.0)))
    for name in neighbours:
        service.traffic(name, rate, until=until, poisson=random)
    service.run(until)
    return service


def down(service, rates, how, seed=None, until=30.0):
    """Fifteen seconds of health, then a database that is down for all."""
    random = None if seed is None else generator(seed)
    for name, rate in rates.items():
        service.traffic(name, rate, until=until, poisson=random)
        service.at(15.0, lambda name=name: service.answers.__setitem__(name, how))
    service.run(until)
    return service


@pytest.mark.sampled
@pytest.mark.parametrize("seed", [None, 1, 2])
@pytest.mark.parametrize("neighbour", ["other", "direct"])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("compartments", COMPARTMENTS)
def test_a_locked_table_refuses_no_call_of_other_workloads(compartments, rate, neighbour, seed):
    """At no rate, and the whole guard's circuit never opens."""
    if neighbour == "direct" and compartments == "auto":
        neighbour = "default"
    service = Service(15, ["orders", neighbour], compartments=compartments)
    lock(service, ["orders"], neighbours=[neighbour], rate=rate, seed=seed)
    assert [key for key in service.refused if key[0] == neighbour] == []
    assert service.opened() is None
    assert service.refused["orders", "orders", "circuit_open"] > 0


@pytest.mark.sampled
@pytest.mark.parametrize("query_first", [False, True])
@pytest.mark.parametrize("busy", [4.5, 30])
@pytest.mark.parametrize(
    ("slots", "routes", "most"),
    [
        (slots, routes, most)
        for slots, row in {
            20: (0, 0, 0.01, 0.01),
            15: (0, 0.005, 0.015, 0.015),
            10: (0, 0.01, 0.02, 0.13),
            5: (0.005, 0.03, 0.18, 0.33),
        }.items()
        for routes, most in zip((1, 2, 3, 5), row, strict=True)
    ],
)
def test_several_routes_of_a_locked_table_leave_slots_for_the_others(slots, routes, most, busy, query_first):
    """Of the 240 calls of a route that works in that time, no more are refused than the guide says.

    Also if each transaction makes a quick query first, such as that for the user, whose success says nothing.
    """
    names = [f"orders {number}" for number in range(routes)]
    names_of_all = [*names, "other", "quiet"]
    service = Service(slots, names_of_all, compartments="auto", query_first=query_first)
    lock(service, names, busy=busy, neighbours=["other", "quiet"], rate=8, seed=1)
    refused = sum(times for (name, _, _), times in service.refused.items() if name == "other")
    assert refused <= most * 240
    assert service.served["other"] + refused > 400


@pytest.mark.parametrize("policy", [BreakerPolicy(sliding_window_type="count", sliding_window_size=50), None])
@pytest.mark.parametrize("slots", [2, 3, 5, 50])
def test_no_healthy_workload_is_refused_by_the_guards_open_circuit(slots, policy):
    """In small pools and large, with a window of calls, and in a compartment without a circuit."""
    options = {} if policy is None else {"breaker": policy}
    service = Service(slots, ["orders", "other"], **options)
    if policy is None:
        service.parts["orders"].disable()
    lock(service, ["orders"], neighbours=["other"], rate=0.4)
    assert service.shut_out("other") == 0


@pytest.mark.parametrize("rate", [0.1, 0.4, 2])
def test_several_locked_tables_refuse_no_call_of_other_workloads(rate):
    """Three at once, whose compartments are small enough to leave some slots."""
    service = Service(15, ["orders", "items", "users", "other"])
    for name in ("orders", "items", "users"):
        service.parts[name].resize(4)
    lock(service, ["orders", "items", "users"], neighbours=["other"], rate=rate)
    assert [key for key in service.refused if key[0] == "other"] == []


@pytest.mark.parametrize("busy", [0.4, 1, 3])
def test_a_rarely_used_table_that_is_locked_refuses_no_other_workload(busy):
    """Its own circuit has too little to go by, and must not need to open."""
    service = Service(15, ["orders", "other"])
    lock(service, ["orders"], busy=busy, neighbours=["other"], rate=0.4)
    assert [key for key in service.refused if key[0] == "other"] == []
    assert service.opened() is None


@settings(max_examples=40, deadline=None)
@given(
    slots=st.integers(2, 30),
    compartments=st.sampled_from(COMPARTMENTS),
    rates=st.lists(st.sampled_from(RATES), min_size=1, max_size=4),
    sick=st.integers(1, 3),
    busy=st.sampled_from([0.5, 2, 15]),
    seed=st.integers(0, 1000),
    count=st.booleans(),
)
def test_a_workload_whose_calls_all_succeed_is_never_refused_by_the_guards_circuit(
    slots, compartments, rates, sick, busy, seed, count
):
    """Whatever happens to the others, and however many they are."""
    well, ill = [f"well{i}" for i in range(len(rates))], [f"ill{i}" for i in range(sick)]
    window = {"sliding_window_type": "count", "sliding_window_size": 30} if count else {}
    service = Service(slots, [*well, *ill], compartments=compartments, breaker=BreakerPolicy(**window))
    random = generator(seed)
    for name, rate in zip(well, rates, strict=True):
        service.traffic(name, rate, until=40, poisson=random)
    for name in ill:
        service.traffic(name, busy, until=40, poisson=random)
        how = random.choice([locked(30.0), refuses, frozen])
        service.at(random.uniform(8, 12), lambda name=name, how=how: service.answers.__setitem__(name, how))
        service.at(30.0, lambda name=name: service.answers.__setitem__(name, quick))
    service.run(40)
    assert [name for name in well if service.shut_out(name)] == []
    services.remove(service)
    service.close()


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize(
    ("rates", "how", "within"),
    [
        ({"orders": 15}, frozen, 2.2),
        ({"direct": 15}, frozen, 2.2),
        ({"orders": 15, "other": 4}, frozen, 2.2),
        ({"orders": 15, "other": 10, "third": 0.1}, frozen, 2.2),
        ({"orders": 8, "other": 4, "direct": 2}, frozen, 2.6),
        ({"orders": 15, "other": 4}, refuses, 1.3),
        ({"orders": 15, "other": 10, "third": 0.1}, refuses, 1.3),
        ({f"route{i}": 0.3 for i in range(40)}, refuses, 2.0),
    ],
)
def test_a_database_that_is_down_for_all_opens_the_guards_circuit(rates, how, within, seed):
    """About one slow-call threshold after the failure has reached a second workload, or the only one."""
    service = down(Service(15, list(rates)), rates, how, seed)
    assert 15 < service.opened() < 15 + within


def test_one_call_of_a_second_workload_is_enough():
    """The first has opened its own circuit; one call of the second is then enough for the whole."""
    service = down(Service(15, ["orders", "other"]), {"orders": 15, "other": 0.4}, frozen)
    assert service.opened() == 20.0  # asked at 17.5, and the next that comes by finds it overdue
    assert service.shut_out("other") > 0


def test_one_workload_that_holds_every_slot_does_not_open_the_guards_circuit():
    """Other workloads get no slot until its calls have timed out, and are not refused for longer."""
    service = Service(15, ["direct", "other"])
    lock(service, ["direct"], busy=30, neighbours=["other"], rate=1)
    assert service.shut_out("other") == 0
    assert service.refused["other", "db", "bulkhead_full"] > 0


def test_the_guards_circuit_closes_when_the_database_is_back():
    """By the probes of whichever workload comes."""
    service = Service(15, ["orders", "other"])
    service.at(25.0, lambda: service.answers.update(orders=quick, other=quick))
    down(service, {"orders": 15, "other": 4}, frozen, until=40.0)
    assert service.guard.state == "closed"
    assert all(part.state == "closed" for part in service.parts.values())


def test_a_circuit_opened_by_hand_refuses_every_workload():
    """A manual opening is for all workloads."""
    for hold in (lambda guard: guard.force_open(), _open):
        service = Service(15, ["orders", "other"])
        service.call("other")
        service.run(1.0)
        hold(service.guard)
        service.call("other")
        assert service.shut_out("other") == 1


def _open(guard):
    gate = guard.call_settings.gates[0]
    gate.step(gate.core.set_state, "open")


def test_five_slow_reports_at_once_are_no_stall():
    """Each ends: 1.3 s on a pool of five, again and again."""
    service = Service(5, ["direct"])
    service.answers["direct"] = lambda _: (1.3, Outcome.SUCCESS)
    for _ in range(5):
        service.at(1.0, lambda: service.call("direct"))
    service.run(10)
    assert service.changes == []
    assert service.served["direct"] == 5


def test_a_long_report_among_short_ones_is_no_stall():
    """Something came back while it ran."""
    service = Service(5, ["direct"])
    durations = iter([4.0, 0.5, 1.3, 1.3, 1.3, 1.3])
    service.answers["direct"] = lambda _: (next(durations), Outcome.SUCCESS)
    for moment in (0.0, 2.3, 3.0, 3.0, 3.0, 3.0):
        service.at(moment, lambda: service.call("direct"))
    service.run(10)
    assert service.changes == []


def test_a_pool_without_any_returned_call_stalls():
    """Two thresholds after its slots were taken at once."""
    service = Service(5, ["direct"])
    service.answers["direct"] = frozen
    for _ in range(5):
        service.at(1.0, lambda: service.call("direct"))
    service.at(2.9, lambda: service.call("direct"))
    service.at(3.01, lambda: service.call("direct"))
    service.run(3.5)
    assert service.changes == [(3.01, "db", "open", "stalled")]
