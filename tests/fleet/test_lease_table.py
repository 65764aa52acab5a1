"""The rule of leases by steps: sums that follow each change, division by demand, what is left over."""

from __future__ import annotations

import random

import pytest

from guardrails.fleet._lease import LeaseTable, leave, members, renew
from guardrails.fleet._lease_sums import LeaseSums
from guardrails.fleet._records import (
    EPOCH,
    FORGET_AFTER,
    GRANTED,
    LEASE,
    LEAVING,
    LIVE,
    SILENT_AFTER,
    STALE,
    Record,
    Request,
)
from guardrails.fleet._worker_lease import Peaks

BEGIN = 1_000_000_000


def request(worker="w1", seq=1, **values):
    settings = {
        "instance": "1a", "fresh": seq == 1, "has": 0, "cap": 0, "safe": 0, "wants": 1, "minimum": 1,
        "most": 20, "budget": 20,
    }  # fmt: skip
    return Request(worker, seq=seq, **(settings | values))


def random_request(draw, seqs):
    worker = f"w{draw.randrange(12)}"
    seqs[worker] = max(0, seqs.get(worker, 0) + draw.choice([1, 1, 1, 1, 0, -1]))
    has = draw.choice([0, 0, 1, 3, 8])
    return Request(
        worker, draw.choice(["aa"] * 9 + ["bb"]), seqs[worker], draw.random() < 0.3, has,
        has + draw.choice([0, 0, 2, 5]), draw.choice([0, 2, 5]), draw.choice([0, 1, 4, 9, 70, 90, 333]),
        draw.choice([1, 1, 1, 2, 5]), draw.choice([1, 3, 10, 50, 200]), draw.choice([400, 400, 40, 30]),
    )  # fmt: skip


def summed(table):
    """The sums over the members from scratch."""
    sums = LeaseSums()
    for _, record in table.members.items():  # noqa: PERF102 - it is no dict
        sums.add(record, record.state(table.last), 1)
    return sums


@pytest.mark.parametrize("seed", range(20))
def test_sums_that_follow_each_change_are_those_from_scratch(seed):
    """Kept in memory and read anew from the texts, the rule replies the same and has the same members."""
    draw, table, fields, seqs, now = random.Random(seed), LeaseTable(), {}, {}, BEGIN
    statuses = set()
    for _ in range(400):
        now += draw.choice([1, 40, 100, 300, 300, 900, 2500, 4000, 16000, -300, -5000])
        asked = random_request(draw, seqs)
        if draw.random() < 0.1:
            table.leave(asked, now)
            leave(fields, asked, now)
        else:
            reply = table.renew(asked, now)
            assert renew(fields, asked, now) == reply
            statuses.add(reply.status)
        assert table.sums == summed(table)
        assert fields == {name: record.write() for name, record in table.members.items()} | {
            EPOCH: table.epoch()
        }
    assert GRANTED in statuses
    assert STALE in statuses


class Fleet:
    """Workers that ask in turn, until their grants no longer change."""

    def __init__(self, budget, **wants):
        self.table, self.budget, self.now, self.seq = LeaseTable(), budget, BEGIN, 0
        self.wants, self.grants = wants, dict.fromkeys(wants, 0)
        for _ in range(12):
            self.round()

    def ask(self, worker):
        self.seq += 1
        grant = self.grants[worker]
        asked = request(
            worker, self.seq, cap=grant, has=grant, wants=self.wants[worker], budget=self.budget,
            fresh=False,
        )  # fmt: skip
        reply = self.table.renew(asked, self.now)
        self.grants[worker] = reply.grant
        return reply

    def round(self):
        self.now += 500
        for worker in self.wants:
            self.ask(worker)


def test_who_wants_little_gets_it_and_the_others_divide_the_rest():
    fleet = Fleet(20, a=2, b=20, c=20)
    assert fleet.grants == {"a": 2, "b": 9, "c": 9}


def test_the_connections_left_over_go_to_the_first_and_stay_there():
    fleet = Fleet(20, a=20, b=20, c=20)
    assert sorted(fleet.grants.values()) == [6, 7, 7]
    before = dict(fleet.grants)
    for _ in range(10):
        fleet.round()
        assert fleet.grants == before
    assert fleet.table.sums.extra == 2


@pytest.mark.parametrize("seed", range(30))
def test_division_is_even_within_one_and_whole_whatever_changes(seed):
    draw = random.Random(seed)
    fleet = Fleet(draw.randint(10, 60), **{f"w{n}": 20 for n in range(draw.randint(2, 9))})
    for _ in range(6):
        for worker in fleet.wants:
            fleet.wants[worker] = draw.choice([1, 2, 5, 20, 20])
        for _ in range(4):
            fleet.round()
        grants, wanted = fleet.grants, sum(fleet.wants.values())
        assert min(wanted, fleet.budget) <= sum(grants.values()) <= fleet.budget
        most = max(grants.values())
        for worker, grant in grants.items():
            assert grant >= min(fleet.wants[worker], most - 1), fleet.wants
        before = dict(grants)
        fleet.round()
        assert fleet.grants == before


def full_fleet():
    """Two workers with all 20 connections; then two more join, with floors of 2 and 1."""
    fleet = Fleet(20, a=20, b=20)
    late = {}
    for worker, minimum in (("c", 2), ("d", 1)):
        asked = request(worker, minimum=minimum)
        late[worker] = asked
        assert fleet.table.renew(asked, fleet.now).grant == 0
    return fleet, late


def give_back(fleet, worker, many):
    """A worker reports that it has closed so many connections."""
    fleet.grants[worker] -= many
    return fleet.ask(worker)


def test_what_becomes_free_is_kept_for_workers_below_their_floor():
    fleet, late = full_fleet()
    assert give_back(fleet, "a", 5).grant == 7, "five are free, and three of them are missing from floors"
    assert fleet.table.renew(late["d"]._replace(seq=2), fleet.now).grant == 1
    assert fleet.ask("a").grant == 7
    assert fleet.table.renew(late["c"]._replace(seq=2), fleet.now).grant == 2


def test_a_worker_keeps_what_it_has_while_others_are_below_their_floor():
    fleet, _ = full_fleet()
    assert give_back(fleet, "a", 2).grant == 8, (
        "its fair share is 9, and two free ones are not enough for three"
    )


def test_a_budget_that_is_lowered_cuts_each_worker_to_its_fair_share_and_not_below():
    fleet = Fleet(30, a=20, b=20, c=20)
    assert fleet.grants == {"a": 10, "b": 10, "c": 10}
    fleet.budget = 24
    for _ in range(2):
        assert [fleet.ask(worker).grant for worker in "abc"] == [8, 8, 8]
    assert fleet.table.sums.cap == 24


def test_a_floor_that_was_borrowed_takes_nothing_beyond_the_fair_shares_from_the_others():
    """The silent worker has 10 of 40, and the new one borrows 6 of them: 24 are left for three others."""
    fleet = Fleet(40, a=20, b=20, c=20, d=20)
    del fleet.wants["d"]
    for _ in range(8):
        fleet.round()
    assert fleet.table.sums.held_by_silent == 10
    reply = fleet.table.renew(request("e", minimum=6, budget=40), fleet.now)
    assert (reply.grant, reply.borrowed) == (6, 6)
    assert [fleet.ask(worker).grant for worker in "abc"] == [8, 8, 8]
    for _ in range(2):
        fleet.round()
    assert [fleet.grants[worker] for worker in "abc"] == [8, 8, 8]
    assert fleet.table.sums.cap + fleet.table.sums.held_by_silent == 40


def test_no_worker_grows_while_more_is_reserved_than_the_budget():
    fleet = Fleet(30, a=20, b=20, c=1)
    grants = dict(fleet.grants)
    fleet.budget, fleet.wants["c"] = 20, 20
    assert fleet.ask("c").grant == grants["c"]
    assert sum(grants.values()) > 20


def test_a_new_worker_gets_its_floor_after_those_that_wait():
    fleet, late = full_fleet()
    give_back(fleet, "a", 3)
    assert fleet.table.renew(request("e"), fleet.now).grant == 0, "three are free, and others wait for them"
    assert fleet.table.renew(late["c"]._replace(seq=2), fleet.now).grant == 2
    assert fleet.table.renew(late["d"]._replace(seq=2), fleet.now).grant == 1
    give_back(fleet, "a", 1)
    assert fleet.table.renew(request("f"), fleet.now).grant == 0
    assert fleet.table.renew(request("e", 2), fleet.now).grant == 1


def test_a_request_that_says_the_same_in_the_same_revision_gets_the_same_reply():
    fleet = Fleet(20, a=3, b=20, c=9)
    replies = {worker: fleet.ask(worker) for worker in fleet.wants}
    revision = fleet.table.revision
    for _ in range(5):
        fleet.now += 300
        assert {worker: fleet.ask(worker) for worker in fleet.wants} == replies
        assert fleet.table.revision == revision
    fleet.wants["a"] = 4
    fleet.ask("a")
    assert fleet.table.revision > revision


@pytest.mark.parametrize("seed", range(20))
def test_a_level_that_follows_each_change_is_the_one_found_from_scratch(seed):
    """Whether it moves by single steps or, after a large change, by a search."""
    draw, sums, members = random.Random(seed), LeaseSums(), []
    for _ in range(300):
        if members and draw.random() < 0.4:
            sums.add(members.pop(draw.randrange(len(members))), LIVE, -1)
        else:
            wants, most = draw.choice([0, 1, 4, 9, 70, 333, 9000]), draw.choice([1, 3, 10, 50, 200, 10_000])
            floor = draw.choice([1, 2, 5])
            record = Record("aa", 1, False, False, 0, 0, wants, floor, most, 400, 0, 0, 0, "")
            members.append(record)
            sums.add(record, LIVE, 1)
        fresh = LeaseSums()
        for record in members:
            fresh.add(record, LIVE, 1)
        budget = draw.choice([20, 100, 101, 400, 5000])
        found, expected = sums.divide(budget), fresh.divide(budget)
        assert (found.mode, found.left) == (expected.mode, expected.left)
        for record in members:
            assert found.share(record) == expected.share(record)
            assert found.may_have_more(record) == expected.may_have_more(record)


def test_states_end_after_their_time():
    table = LeaseTable()
    table.renew(request("a", has=4, cap=4), BEGIN)
    table.renew(request("b", has=3, cap=3), BEGIN)
    table.leave(request("b", 2, has=3, cap=3), BEGIN)
    assert (table.sums.live, table.sums.held_by_left) == (1, 3)
    table.renew(request("c"), BEGIN + LEAVING)
    assert table.sums.held_by_left == 3
    table.renew(request("c", 2), BEGIN + LEAVING + 1)
    assert table.sums.held_by_left == 0
    table.renew(request("c", 3), BEGIN + SILENT_AFTER)
    assert (table.sums.live, table.sums.silent) == (2, 0)
    table.renew(request("c", 4), BEGIN + SILENT_AFTER + 1)
    assert (table.sums.live, table.sums.silent, table.sums.held_by_silent) == (1, 1, 4)
    table.renew(request("c", 5), BEGIN + FORGET_AFTER)
    assert sorted(table.members) == ["a", "b", "c"]
    table.renew(request("c", 6), BEGIN + FORGET_AFTER + 1)
    assert list(table.members) == ["c"]


def test_a_clock_that_goes_back_a_little_stands_still_and_one_that_jumps_back_forgets():
    table = LeaseTable()
    table.renew(request("a", cap=5, has=5), BEGIN)
    reply = table.renew(request("b"), BEGIN - 1000)
    assert (reply.workers, table.last) == (2, BEGIN)
    reply = table.renew(request("b", 2), BEGIN - 1001)
    assert (reply.workers, reply.learning, table.last) == (1, True, BEGIN - 1001)
    table.renew(request("b", 3), BEGIN - 1001 + LEASE)
    assert not table.renew(request("b", 4), BEGIN - 1001 + LEASE).learning


def test_large_demands_are_rounded_up_by_a_sixteenth_at_most():
    sums = LeaseSums()
    table = LeaseTable()
    for number, wants in enumerate([64, 65, 68, 69, 1000, 999_999]):
        table.renew(request(f"w{number}", wants=wants, most=1_000_000, budget=1_000_000), BEGIN)
    assert sorted(table.sums.wanted) == [64, 68, 72, 1024, 1_000_000]
    assert sums.wanted == {}


def test_texts_that_are_no_records_are_no_members():
    fields = {"x": "", "y": "2 aa", "z": "x" * 400}
    assert members(fields, BEGIN) == {}
    renew(fields, request("a"), BEGIN)
    assert sorted(fields) == [EPOCH, "a"]


@pytest.mark.parametrize("seed", range(10))
def test_peaks_are_the_largest_values_of_the_last_seconds(seed):
    draw, peaks, noted, now = random.Random(seed), Peaks(2.0), [], 0.0
    for _ in range(500):
        now += draw.choice([0, 0.1, 0.1, 0.5, 1.9, 2.0, 5.0])
        if draw.random() < 0.7:
            noted.append((now, draw.randrange(6)))
            peaks.note(*noted[-1])
        assert peaks.most(now) == max((value for at, value in noted if now - at <= 2.0), default=0)
