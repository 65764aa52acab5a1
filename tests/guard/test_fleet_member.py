"""A guard's part in a fleet: who is asked before the first call, and whose slots count."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from guardrails import ConfigurationError, Guard
from guardrails._guard.guard import attach, lease_of, set_slots
from guardrails._runtime.waiters import on_event_loop


class Lease:
    """Gives a guard half of its largest limit."""

    def __init__(self, guard):
        self._guard, self.ceiling = guard, 8
        set_slots(guard, 1)

    def resize(self, ceiling):
        self.ceiling = ceiling
        return ceiling // 2


class Member:
    """Starts with the first call."""

    def __init__(self, guard, lease):
        self.started, self.lease, self.asked = False, lease, []
        guard._gate.core.fast = False
        guard._gate.core.close_fast_paths()

    def admit(self, wait, *, may_wait):
        self.asked.append(may_wait)
        self.started = True

    async def admit_async(self):
        self.asked.append("async")
        self.started = True


class Part:
    """A budget, or a verdict without a lease."""

    def __init__(self, *, leases):
        self._leases = leases

    def enroll(self, guard):
        self.member = Member(guard, Lease(guard) if self._leases else None)
        return self.member


def guarded(*, leases=True, **options):
    part = Part(leases=leases)
    guard = Guard("search", max_concurrent_calls=8, fleet=part, **options)
    return guard, part.member


def test_the_first_call_asks_the_member_and_no_later_one():
    guard, member = guarded()
    assert member.asked == []
    guard.run(int)
    with guard.call():
        pass
    assert member.asked == [True]


def test_a_call_on_an_event_loop_may_not_wait_and_a_task_may():
    guard, member = guarded()
    other, of_other = guarded()

    async def main():
        assert on_event_loop()
        guard.run(int)
        async with other.call():
            pass
        async with other.call():
            pass

    asyncio.run(main())
    assert (member.asked, of_other.asked) == ([False], ["async"])


def test_a_call_of_a_compartment_asks_the_member_of_its_guard():
    guard, member = guarded()
    guard.compartment("reports").run(int)
    assert member.asked == [True]


def test_the_lease_is_resized_and_says_how_large_a_compartment_may_be():
    guard, member = guarded()
    assert lease_of(guard) is member.lease
    with pytest.raises(ConfigurationError, match="got 9"):
        guard.compartment("large", max_concurrent_calls=9)
    reports = guard.compartment("reports", max_concurrent_calls=5)
    assert lease_of(reports) is None
    reports.resize(7)
    guard.resize(6)
    assert guard.snapshot().max_concurrent_calls == 3
    with pytest.raises(ConfigurationError, match="got 7"):
        reports.resize(7)


def test_a_member_without_a_lease_changes_no_slots():
    guard, _ = guarded(leases=False)
    assert lease_of(guard) is None
    guard.resize(4)
    assert guard.snapshot().max_concurrent_calls == 4


def test_what_no_fleet_gives_is_refused():
    with pytest.raises(
        ConfigurationError, match=r"guard 'search': fleet must be a budget or verdict.* got 5"
    ):
        Guard("search", max_concurrent_calls=2, fleet=5)


def test_the_lease_of_a_pool_is_that_of_its_upkeep():
    guard = Guard("db", max_concurrent_calls=8)
    lease = Lease(guard)
    attach(guard, SimpleNamespace(most=8, upkeep=SimpleNamespace(lease=lease, resized=list), detach=list))
    assert lease_of(guard) is lease
    guard.resize(6)
    assert guard._gate.core.bulkhead.limit == 3
    guard.detach()
    assert lease_of(guard) is None
