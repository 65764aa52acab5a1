"""The verdict of a fleet: the rule by steps, one rule in both languages, and guards that follow it."""

from __future__ import annotations

import random
import threading
import time
from contextlib import suppress

import pytest
import redis

from guardrails import BreakerPolicy, Guard
from guardrails.errors import CircuitOpenError, ConfigurationError
from guardrails.events import StateChanged
from guardrails.fleet._fleet import Verdict
from guardrails.fleet._guard_verdict import GuardVerdict
from guardrails.fleet._records import EPOCH
from guardrails.fleet._redis_store import SCRIPT, RedisStore, _words
from guardrails.fleet._rulings import CLOSED, DECLINED, FAILED, OPEN, PASSED, PROBE, Ruling, VerdictRequest
from guardrails.fleet._sqlite_store import SQLiteStore
from guardrails.fleet._stores import Ask, StoreError
from guardrails.fleet._verdict import VerdictTable, judge
from guardrails.fleet._worker import FleetWorker, Identity
from support.polling import wait_until

WAIT, LEASE_OF_ROUND = 2000, 10_000


class Rule:
    """The rule with a clock and the requests' numbers."""

    def __init__(self):
        self.fields, self.now, self.seq, self.generations = {}, 1_000_000, 0, {}

    def ask(self, worker, calls=0, failures=0, slow=0, **more):
        self.seq += 1
        settings = {"result": 0, "refused": 0, "minimum": 10, "failure_rate": 500_000, "slow_rate": 500_000}
        request = VerdictRequest(
            worker, "aa", self.seq, self.generations.get(worker, 0),
            calls=calls, failures=failures, slow=slow,
            **(settings | {"wait": WAIT, "lease": LEASE_OF_ROUND} | more),
        )  # fmt: skip
        ruling = judge(self.fields, request, self.now)
        self.generations[worker] = ruling.generation
        return ruling

    def state(self, worker, *counts, **more):
        return self.ask(worker, *counts, **more).state


@pytest.fixture
def rule():
    return Rule()


def open_circuit(rule):
    for number in range(5):
        rule.ask(f"w{number}", 2, 2)
    assert rule.state("w0", 2, 2) == OPEN


def test_many_small_workers_are_one_large_one(rule):
    """Forty workers with two calls each: none reaches its minimum of ten, together they do."""
    states = [rule.state(f"w{number}", 2, number % 2 * 2) for number in range(40)]
    assert states == [CLOSED] * 5 + [OPEN] * 35, "six of twelve calls failed"
    assert {rule.state(f"w{number}", 2, 0) for number in range(40)} == {OPEN}


def test_slow_calls_count_like_failures(rule):
    assert [rule.state(f"w{number}", 2, 0, 2) for number in range(5)] == [CLOSED] * 4 + [OPEN]


def test_one_bad_worker_opens_nothing_for_the_others(rule):
    rule.ask("good", 20, 0)
    for _ in range(3):
        assert rule.state("bad", 100, 100) == CLOSED
        assert rule.state("good", 20, 0) == CLOSED


def test_the_only_worker_decides_alone(rule):
    assert rule.state("w1", 10, 5) == OPEN


def test_one_bad_worker_opens_nothing_for_those_who_have_no_calls(rule):
    assert rule.state("idle") == CLOSED
    assert rule.state("w1", 10, 5) == CLOSED


def test_too_few_calls_are_no_verdict(rule):
    assert [rule.state(f"w{number}", 3, 3) for number in range(3)] == [CLOSED] * 3


def test_a_worker_that_is_silent_does_not_count(rule):
    rule.ask("w1", 8, 8)
    rule.now += 3001
    rule.ask("w3", 0, 0)
    assert rule.state("w2", 8, 8) == CLOSED
    assert rule.state("w1", 8, 8) == OPEN


def test_one_worker_makes_the_probes_of_the_whole_fleet(rule):
    open_circuit(rule)
    rule.now += WAIT
    assert rule.state("w1") == OPEN, "one without callers leaves the round to others"
    assert rule.state("w2", refused=3) == PROBE
    assert [rule.state(f"w{number}", refused=5) for number in range(5)] == [OPEN, OPEN, PROBE, OPEN, OPEN]
    assert rule.state("w2", result=PASSED) == CLOSED
    assert rule.state("w3", 100, 100) == CLOSED, "its window is of before"
    assert rule.state("w4", 100, 100) == CLOSED
    assert rule.state("w3", 6, 6) == CLOSED
    assert rule.state("w4", 6, 6) == OPEN


def test_a_failed_round_opens_for_another_period(rule):
    open_circuit(rule)
    rule.now += WAIT
    assert rule.state("w2", refused=1) == PROBE
    ruling = rule.ask("w2", result=FAILED)
    assert (ruling.state, ruling.left) == (OPEN, WAIT)
    rule.now += WAIT
    assert rule.state("w3", refused=1) == PROBE


def test_a_round_goes_to_another_when_its_time_is_over_or_its_worker_is_gone(rule):
    open_circuit(rule)
    rule.now += WAIT
    assert rule.state("w2", refused=1) == PROBE
    rule.now += 3001
    assert rule.state("w3") == PROBE
    for _ in range(5):
        rule.now += 2000
        assert rule.state("w3") == PROBE
    assert rule.state("w4") == PROBE
    assert rule.state("w3") == OPEN


def test_a_round_without_callers_begins_after_two_seconds(rule):
    open_circuit(rule)
    rule.now += WAIT + 2000
    assert rule.state("w1") == PROBE


def test_a_worker_that_can_make_no_probes_gets_no_round(rule):
    open_circuit(rule)
    rule.now += WAIT
    assert rule.state("w1", refused=9, result=DECLINED) == OPEN
    assert rule.state("w2", refused=1) == PROBE
    rule.now += 2999
    assert rule.state("w1", refused=9, result=DECLINED) == OPEN
    rule.now += 2
    assert rule.state("w1", refused=9, result=DECLINED) == OPEN, "w2 is silent"
    assert rule.state("w3") == PROBE


def test_a_round_that_its_worker_declines_goes_to_the_next_with_callers(rule):
    open_circuit(rule)
    rule.now += WAIT
    assert rule.state("w1", refused=9) == PROBE
    rule.now += 500
    ruling = rule.ask("w1", refused=9, result=DECLINED)
    assert (ruling.state, ruling.left) == (OPEN, 0)
    assert rule.state("w2") == OPEN
    assert rule.state("w3", refused=1) == PROBE
    assert rule.state("w3", result=PASSED) == CLOSED


def test_a_clock_that_jumps_back_does_not_keep_it_open(rule):
    open_circuit(rule)
    rule.now -= 3_600_000
    assert rule.state("w1", refused=1) == PROBE


def test_lost_data_close_the_circuit_and_evidence_opens_it_again(rule):
    open_circuit(rule)
    rule.fields.clear()
    rule.generations.clear()
    assert rule.state("w1", 8, 8) == CLOSED
    assert rule.state("w2", 8, 8) == OPEN


def test_an_earlier_request_changes_nothing(rule):
    rule.ask("w1", 9, 9)
    rule.seq -= 1
    assert rule.ask("w1", 0, 0).calls == 9
    assert rule.state("w2", 9, 9) == OPEN


HOSTILE = ["", "2", "x" * 400, "2 3 1 1 1 1 w1", "2 1 1 9999999999999999 1 1 w1", f"2 1 5 {10**14} 1 1 w1"]


@pytest.mark.parametrize("seed", range(6))
def test_lua_and_python_rule_the_same(valkey, seed):
    draw, fields, now, seqs, known = random.Random(seed), {}, 1_000_000_000, {}, {}
    key = f"guardrails:{{shop}}:verdict2:v{seed}"
    with redis.Redis(port=valkey.port, decode_responses=True) as client:
        run = client.register_script(SCRIPT.replace("redis.call('TIME')", "{ARGV[#ARGV - 1], ARGV[#ARGV]}"))
        seen = set()
        for _ in range(400):
            step = draw.choice([1, 50, 300, 900, 900, 2500, 4000, -200, 12000])
            now += step
            if draw.random() < 0.05 and fields and step > 0:
                fields[EPOCH] = draw.choice(HOSTILE)
                client.hset(key, EPOCH, fields[EPOCH])
            worker = f"w{draw.randrange(5)}"
            seqs[worker] = max(0, seqs.get(worker, 0) + draw.choice([1, 1, 1, 0, -1]))
            calls = draw.choice([0, 2, 5, 12])
            asked = VerdictRequest(
                worker, draw.choice(["aa", "aa", "bb"]), seqs[worker], known.get(worker, 0),
                draw.choice([0, 0, PASSED, FAILED, DECLINED]), calls,
                draw.randint(0, calls), draw.randint(0, calls), draw.choice([0, 0, 3]), 10,
                draw.choice([500_000, 333_333]), 1_000_000, 2000, 10_000,
            )  # fmt: skip
            values = run([key], [*_words(Ask("v", asked)), now // 1000, now % 1000 * 1000])[0]
            ruling = judge(fields, asked, now)
            assert Ruling(*values) == ruling
            found = {EPOCH: client.hget(key, EPOCH)}
            for shard in client.scan_iter(match=f"guardrails:{{shop}}:verdict2.*:v{seed}"):
                found |= client.hgetall(shard)
            assert found == fields
            known[worker] = ruling.generation
            seen.add(ruling.state)
        client.delete(key, *client.scan_iter(match=f"guardrails:{{shop}}:verdict2.*:v{seed}"))
    assert seen == {CLOSED, OPEN, PROBE}


# --- guards ---------------------------------------------------------------------------------------------

POLICY = BreakerPolicy(minimum_number_of_calls=10, wait_duration_in_open_state=0.5)


class Member:
    """One worker with one guard, in this process."""

    def __init__(self, make_store, name, **options):
        self.events, self.probes = [], 0
        self.worker = FleetWorker("shop", make_store, name)
        self.guard = Guard(
            name, max_concurrent_calls=10, listeners=[self.events.append], **{"breaker": POLICY} | options
        )
        self.verdict = Verdict("prices", self.worker).follow(self.guard)
        self.verdict.join()

    def call(self, error=None):
        """Makes a call; returns whether it was let in."""

        def work():
            self.probes += self.guard.state == "half_open"  # as long as a probe runs, the round is open
            if error is not None:
                raise error

        try:
            self.guard.run(work)
        except CircuitOpenError:
            return False
        except ConnectionError:
            pass
        return True

    def causes(self):
        return [(event.new, event.cause) for event in self.events if isinstance(event, StateChanged)]


@pytest.fixture(params=["sqlite", "valkey"])
def fleet(request, tmp_path):
    made = []
    if request.param == "sqlite":
        make_store = lambda: SQLiteStore(str(tmp_path / "fleet.db"), "shop")
    else:
        url = request.getfixturevalue("valkey").url()
        make_store = lambda: RedisStore(url, f"verdict-{id(made)}")

    def join(count, **options):
        members = [Member(make_store, f"w{number}", **options) for number in range(count)]
        made.extend(members)
        wait_until(lambda: all(member.verdict.ruling is not None for member in members))
        return members

    yield join
    for member in made:
        member.worker.close()


def test_guards_open_together_one_probes_and_all_close(fleet):
    """Five workers with three failed calls each; alone none would open."""
    members = fleet(5)
    for member in members:
        for _ in range(3):
            member.call(ConnectionError())
    began = time.monotonic()
    wait_until(lambda: all(member.guard.state == "open" for member in members))
    assert time.monotonic() - began < 5
    assert {cause for member in members for cause in member.causes()} == {("open", "fleet")}
    until = time.monotonic() + 20
    while any(member.guard.state != "closed" for member in members):
        assert time.monotonic() < until
        for member in members:
            if member.guard.state != "closed":
                member.call()
        time.sleep(0.01)
    assert sorted(member.probes for member in members) == [0, 0, 0, 0, 3], "three probes in all"
    for member in members:
        assert member.causes()[-1] in {("closed", "fleet"), ("closed", "probes_passed")}
        assert member.call()


def test_a_worker_with_few_calls_has_time_for_its_round(fleet):
    """A round that waits for its first call has not failed."""
    members = fleet(2)
    for member in members:
        for _ in range(6):
            member.call(ConnectionError())
    wait_until(lambda: all(member.guard.state == "open" for member in members))
    began = time.monotonic()
    while any(member.guard.state != "closed" for member in members):
        for member in members:
            if member.guard.state != "closed":
                member.call()
        time.sleep(0.6)
        assert time.monotonic() - began < 20
    assert sum(member.probes for member in members) == 3
    assert [
        cause for member in members for cause in member.causes() if cause == ("open", "probes_failed")
    ] == []


def test_a_round_that_fails_keeps_all_open(fleet):
    members = fleet(3)
    for member in members:
        for _ in range(4):
            member.call(ConnectionError())
    wait_until(lambda: all(member.guard.state == "open" for member in members))
    let_in, until = 0, time.monotonic() + 3
    while time.monotonic() < until:
        let_in += sum(member.call(ConnectionError()) for member in members)
        time.sleep(0.01)
    assert 0 < let_in <= 3 * 3, "a round fails at its second probe; one round a second at most"
    assert all(member.guard.state != "closed" for member in members)


def test_a_worker_alone_in_its_trouble_opens_its_own_circuit_only(fleet):
    bad, *others = fleet(3)
    for _ in range(10):
        bad.call(ConnectionError())
    assert bad.guard.state == "open"
    until = time.monotonic() + 2.5
    while time.monotonic() < until:
        assert all(member.call() for member in others)
        time.sleep(0.02)
    assert {member.guard.state for member in others} == {"closed"}


def test_a_circuit_that_was_set_by_hand_stays(fleet):
    members = fleet(3)
    members[0].guard.disable()
    for member in members[1:]:
        for _ in range(6):
            member.call(ConnectionError())
    wait_until(lambda: all(member.guard.state == "open" for member in members[1:]))
    time.sleep(1.2)
    assert members[0].guard.state == "disabled"


class VirtualFleet:
    """Real guards in front of one database, and the rule, on one clock of a tenth of a second a step."""

    class Worker:
        def join(self, task):
            pass

    def __init__(self, count):
        self.now, self.table = 100.0, VerdictTable()
        clock = lambda: self.now
        self.guards = [
            Guard(
                "prices", max_concurrent_calls=5, breaker=BreakerPolicy(), mode="enforce", clock=clock,
                random=lambda: 0.5,
            )
            for _ in range(count)
        ]  # fmt: skip
        self.verdicts = [GuardVerdict("prices", each, self.Worker(), clock) for each in self.guards]

    def step(self, error=None):
        self.now += 0.1

        def work():
            if error is not None:
                raise error

        for guard in self.guards:
            with suppress(CircuitOpenError, ConnectionError):
                guard.run(work)
        for number, each in enumerate(self.verdicts):
            if each.tick(self.now):
                asked = each.request(Identity(f"w{number}", f"a{number}", "host"))
                each.take_reply(self.table.judge(asked, round(self.now * 1000)))

    def seconds_to_close(self, guards):
        """Returns after how many seconds of a database that works these guards are closed."""
        for step in range(200):
            self.step()
            if {guard.state for guard in guards} == {"closed"}:
                return step / 10
        return None

    def fail(self, seconds):
        for _ in range(seconds * 10):
            self.step(ConnectionError())


@pytest.mark.parametrize(
    ("ruling", "seconds"),
    [
        (Ruling(CLOSED, 0, 0, 9, calls=100, failures=25, slow=0, troubled=2), 0.5),
        (Ruling(CLOSED, 0, 0, 9, calls=100, failures=0, slow=25, troubled=2), 0.5),
        (Ruling(CLOSED, 0, 0, 1, calls=100, failures=25, slow=0, troubled=1), 0.5),
        (Ruling(CLOSED, 0, 0, 9, calls=100, failures=24, slow=24, troubled=2), 1.0),
        (Ruling(CLOSED, 0, 0, 9, calls=100, failures=50, slow=0, troubled=1), 1.0),
        (Ruling(CLOSED, 0, 0, 9, calls=4, failures=4, slow=0, troubled=2), 1.0),
        (Ruling(OPEN, 500, 0, 9, calls=100, failures=50, slow=0, troubled=2), 1.0),
    ],
)
def test_a_worker_without_calls_asks_more_often_while_the_fleet_is_half_way_to_an_open_circuit(
    ruling, seconds
):
    fleet = VirtualFleet(1)
    (verdict,) = fleet.verdicts
    verdict.tick(fleet.now)
    verdict.request(Identity("w0", "a0", "host"))
    verdict.take_reply(ruling)
    ticks = 1
    while not verdict.tick(fleet.now + ticks / 10):
        ticks += 1
    assert ticks / 10 == pytest.approx(seconds, abs=0.11)


HAND = [
    Guard.force_open,
    Guard.disable,
    Guard.metrics_only,
    pytest.param(lambda guard: guard.set_mode("off"), id="off"),
]


@pytest.mark.parametrize("by_hand", HAND)
def test_a_guard_that_can_make_no_probes_stops_no_other_ones_recovery(by_hand):
    untouched = VirtualFleet(3)
    untouched.fail(10)
    usual = untouched.seconds_to_close(untouched.guards)
    fleet = VirtualFleet(3)
    fleet.fail(5)
    by_hand(fleet.guards[0])
    fleet.fail(5)
    assert fleet.seconds_to_close(fleet.guards[1:]) <= usual + 3.0, "an open period, and a request"


@pytest.mark.parametrize("by_hand", HAND)
def test_a_guard_that_is_set_by_hand_in_its_round_passes_it_on(by_hand):
    fleet = VirtualFleet(2)
    while fleet.table.circuit.state != PROBE:
        fleet.step(ConnectionError())
    prober = int(fleet.table.circuit.prober[1:])
    by_hand(fleet.guards[prober])
    assert fleet.seconds_to_close([fleet.guards[1 - prober]]) <= 3.0


def test_a_fleet_in_shadow_probes_as_an_enforcing_one_would():
    """A caller that would be refused counts as a caller."""
    fleet = VirtualFleet(2)
    for guard in fleet.guards:
        guard.set_mode("shadow")
    fleet.fail(3)
    until = fleet.table.circuit.until
    while fleet.table.circuit.state != PROBE:
        fleet.step(ConnectionError())
    assert fleet.now * 1000 - until <= 1200


def test_without_contact_an_open_circuit_recovers_by_itself(tmp_path):
    class Store(SQLiteStore):
        broken = False

        def exchange(self, asks):
            if Store.broken:
                raise StoreError("gone")
            return super().exchange(asks)

    members = [Member(lambda: Store(str(tmp_path / "fleet.db"), "shop"), f"w{number}") for number in range(2)]
    try:
        wait_until(lambda: all(member.verdict.ruling is not None for member in members))
        for member in members:
            for _ in range(6):
                member.call(ConnectionError())
        wait_until(lambda: all(member.guard.state == "open" for member in members))
        Store.broken = True
        wait_until(lambda: all(member.call() and member.guard.state == "closed" for member in members))
        assert members[0].causes()[-1] == ("closed", "probes_passed")
    finally:
        for member in members:
            member.worker.close()


def test_a_guard_without_a_circuit_cannot_follow():
    guard = Guard("plain", max_concurrent_calls=1, breaker=None)
    with pytest.raises(ConfigurationError, match="guard 'plain' has no circuit"):
        Verdict("prices", FleetWorker("shop", object, None)).follow(guard)


@pytest.mark.sampled(1)
def test_calls_go_on_while_the_verdict_is_asked(fleet):
    """No slot is lost and no caller is refused while the circuit is closed."""
    members = fleet(2)
    refused, stop = [], threading.Event()

    def work(member):
        while not stop.is_set():
            if not member.call():
                refused.append(member)

    threads = [threading.Thread(target=work, args=(member,)) for member in members]
    for thread in threads:
        thread.start()
    time.sleep(1.5)
    stop.set()
    for thread in threads:
        thread.join(10)
    assert refused == []
