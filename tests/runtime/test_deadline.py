"""Deadlines: ambient, nested, inherited, closed when their block ends, and what a guard makes of them."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal

import anyio
import pytest

from guardrails import (
    BreakerPolicy,
    CallTimeoutError,
    ConfigurationError,
    DeadlineSpentError,
    Guard,
    deadline,
    remaining,
)
from guardrails._runtime import loop_timers, task_timeout
from guardrails._runtime import scope as _scope
from support.calls import Boom, be_refused, succeed
from support.polling import wait_until

HANG = 30


async def hang():
    await asyncio.sleep(HANG)


# --- the ambient budget --------------------------------------------------------------------------


def test_the_smaller_of_nested_deadlines_wins(clock):
    """An inner block can only lower the budget; leaving it brings the outer one back."""
    assert remaining() is None
    with deadline(1, clock=clock):
        with deadline(10, clock=clock):
            assert remaining() == 1
        with deadline(0.25, clock=clock):
            assert remaining() == 0.25
            clock.advance(0.5)
            assert remaining() == 0
        assert remaining() == 0.5
    assert remaining() is None


def test_deadlines_on_different_clocks_are_compared_by_what_is_left(clock, make_guard):
    """A budget on real time bounds a guard on another clock."""
    guard = make_guard(timeout=5)
    with deadline(3600):
        with guard.call() as call:
            assert call.remaining() == 5
        with guard.call(timeout=7200) as call:
            assert 3590 < call.remaining() <= 3600


@pytest.mark.parametrize(
    "seconds",
    [
        *map(float, ("nan", "inf", "-inf", "1e400")),
        10**400,
        True,
        "5",
        None,
        Decimal(5),
        timedelta(seconds=5),
    ],
)
def test_a_deadline_is_a_finite_number(seconds):
    """Anything else is refused before a loop, a lock or a driver sees it."""
    with pytest.raises(ConfigurationError, match="finite"), deadline(seconds):
        raise AssertionError


@pytest.mark.parametrize("seconds", [0, -1, -1.0, -0.0, -1e308])
def test_no_time_left_starts_nothing(run, make_guard, clock, seconds):
    """0 and less mean spent, -1 included, which to a lock would mean for ever."""
    guard = make_guard()

    def nested():
        with deadline(seconds, clock=clock):
            assert remaining() == 0
            with pytest.raises(DeadlineSpentError) as refusal, guard.call():
                raise AssertionError
        return refusal.value

    error = nested()
    assert (error.reason, error.retry_after, error.guard) == ("deadline_spent", None, "db")
    assert guard.snapshot().rejected == {"deadline_spent": 1}
    assert guard.snapshot().calls == 0


def test_a_closed_deadline_limits_no_call():
    """A task started inside a block and a copied context step over it once the block has ended."""

    async def main():
        left = []
        release = asyncio.Event()

        async def background():
            left.append(remaining())
            await release.wait()
            left.append(remaining())

        with deadline(5):
            task = asyncio.create_task(background())
            copied = contextvars.copy_context()
            await asyncio.sleep(0)
        release.set()
        await task
        assert 0 < left[0] <= 5
        assert left[1] is None
        assert copied.run(remaining) is None

    asyncio.run(main())


def test_deadlines_that_end_out_of_order_leave_none_behind():
    """The last to be closed ends the budget, whichever was opened first."""
    outer, inner = deadline(5), deadline(3)
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert 0 < remaining() <= 3
    inner.__exit__(None, None, None)
    assert remaining() is None


@pytest.mark.parametrize("around", [None, 9])
def test_clear_deadline_leaves_the_enclosing_deadline(clock, make_guard, around):
    """As a middleware does for a response that streams for as long as it likes."""
    with contextlib.ExitStack() as stack:
        if around is not None:
            stack.enter_context(deadline(around))  # on another clock
        scope = _scope.open_scope(3, None, clock, _scope.current())
        assert remaining() == pytest.approx(3)
        for _ in range(2):
            scope.clear_deadline()
            assert remaining() == (None if around is None else pytest.approx(around, abs=1))
        _scope.close(scope)


def test_code_that_runs_in_steps_keeps_its_own_deadline_between_them():
    """As a generator of a WSGI application: what a step leaves behind is there in its next, nowhere else."""
    with deadline(60):
        server = _scope.swap(None)
        assert remaining() is None
        inner = _scope.open_scope(None, None, time.monotonic, None)
        assert _scope.swap(server) is inner
        assert remaining() == pytest.approx(60, abs=10)
        assert _scope.swap(inner) is server
        _scope.close(inner)
        _scope.swap(server)
    assert remaining() is None


def test_a_scope_closed_in_another_context_is_skipped():
    """Code that is in another scope by then stays in it."""
    outer = _scope.open_scope(None, None, time.monotonic, None)
    inner = _scope.open_scope(None, None, time.monotonic, outer)
    _scope.close(outer)
    assert _scope.current() is inner
    _scope.close(inner)
    assert _scope.current() is None


def test_a_route_is_known_to_the_outermost_middleware_that_knows_one():
    """A request's scope asks the one around it; with none there is no route."""

    class Routed(_scope.RequestScope):
        def template(self):
            return "/orders/{id}"

        def find_name(self):
            return "GET /orders/{id}"

    outer = _scope.enter(Routed(None, time.monotonic, None))
    inner = _scope.enter(_scope.RequestScope(None, time.monotonic, outer))
    assert (inner.template(), inner.find_name()) == ("/orders/{id}", "GET /orders/{id}")
    _scope.close(inner)
    _scope.close(outer)
    with deadline(60):
        in_a_block = _scope.RequestScope(None, time.monotonic, _scope.current())
        assert in_a_block.template() is in_a_block.find_name() is None
    assert _scope.RequestScope(None, time.monotonic, None).template() is None


def test_the_outermost_middleware_drops_the_unhandled_exception_of_a_request():
    """An outer one may need that of an inner one; the guards' names stay."""
    outer = _scope.enter(_scope.RequestScope(None, time.monotonic, None))
    inner = _scope.enter(_scope.RequestScope(None, time.monotonic, outer))
    outer.forget_error()
    assert outer.request_errors is None
    errors = inner.record_errors()
    errors.failing.add(("db", None))
    errors.unhandled = error = LookupError()
    inner.forget_error()
    assert outer.request_errors.unhandled is error
    outer.forget_error()
    assert (errors.unhandled, errors.failing) == (None, {("db", None)})
    _scope.close(inner)
    _scope.close(outer)


def test_worker_threads_and_tasks_inherit_and_cannot_extend():
    """`asyncio.to_thread`, `create_task` and a copied context carry the budget; a plain thread does not."""

    def look():
        with deadline(60):
            return remaining()

    async def main():
        with deadline(1):
            return [
                await asyncio.to_thread(look),
                await asyncio.create_task(asyncio.to_thread(look)),
                await asyncio.get_running_loop().run_in_executor(None, contextvars.copy_context().run, look),
            ]

    assert all(0 < left <= 1 for left in asyncio.run(main()))
    with deadline(1), ThreadPoolExecutor(1) as pool:
        assert 1 < pool.submit(look).result() <= 60


def test_the_next_request_of_the_same_thread_has_no_deadline(run, make_guard):
    """Nothing leaks from one call to the next, whichever way it ended."""
    guard = make_guard(timeout=5)

    def failing():
        assert remaining() is not None
        raise Boom

    for _ in range(3):
        with pytest.raises(Boom):
            run(guard, failing)
        assert remaining() is None


# --- a guard's own timeout -----------------------------------------------------------------------


def test_remaining_of_a_call_is_its_time_left(make_guard, clock):
    """The smaller of its own timeout and the ambient budget; 0.0 when time is up."""
    guard = make_guard(timeout=5)
    unbounded = guard.call()
    assert unbounded.remaining() is None
    with guard.call() as call:
        clock.advance(2)
        assert call.remaining() == remaining() == 3
        clock.advance(4)
        assert call.remaining() == 0
    with guard.call(timeout=1) as call:
        assert call.remaining() == 1


@pytest.mark.parametrize("timeout", [0, -1, True, "5", float("nan"), float("inf"), 10**400, Decimal(5)])
def test_a_timeout_is_a_number_of_seconds(make_guard, timeout):
    """Refused by name."""
    with pytest.raises(ConfigurationError, match=r"guard 'db': timeout must be"):
        make_guard().call(timeout)


def test_a_synchronous_call_that_returns_late_counts_as_a_failure(make_guard, clock):
    """It cannot be stopped; its result is returned, and the dependency was too slow."""
    guard = make_guard(timeout=1)
    assert guard.run(lambda: clock.advance(1.5) or "late") == "late"
    assert (guard.snapshot().failed, guard.snapshot().succeeded) == (1, 0)
    assert guard.run(lambda: clock.advance(1) or "in time") == "in time"
    assert guard.snapshot().succeeded == 1


def test_a_late_call_is_a_failure_even_if_its_result_is_a_success(make_guard, clock):
    """The rule for results cannot make a late answer an early one."""
    guard = make_guard(timeout=1, breaker=BreakerPolicy(is_failure_result=lambda result: False))
    guard.run(clock.advance, 1.5)
    assert guard.snapshot().failed == 1


def test_a_late_call_under_the_callers_deadline_is_no_evidence(make_guard, clock):
    """The caller gave it too little time; that says nothing about the dependency."""
    guard = make_guard(timeout=5)
    with deadline(1, clock=clock):
        guard.run(clock.advance, 2)
    assert guard.snapshot().succeeded == 1


def test_an_asyncio_call_is_cancelled_at_its_timeout(make_guard):
    """The error names the guard and its timeout, and is a TimeoutError; the slot is free again."""
    guard = Guard("db", max_concurrent_calls=1, timeout=0.02)

    async def main():
        with pytest.raises(CallTimeoutError) as late:
            await guard.run_async(hang)
        return late.value

    error = asyncio.run(main())
    assert isinstance(error, TimeoutError)
    assert (error.guard, error.timeout) == ("db", 0.02)
    assert isinstance(error.__cause__, asyncio.CancelledError)
    now = guard.snapshot()
    assert (now.failed, now.abandoned, now.in_use) == (1, 0, 0)


def test_an_inherited_deadline_cancels_and_is_no_evidence():
    """`deadline` binds a call whose own timeout is longer; the dependency is not blamed."""
    guard = Guard("db", max_concurrent_calls=1, timeout=HANG)

    async def main():
        with deadline(0.02), pytest.raises(CallTimeoutError) as late:
            await guard.run_async(hang)
        assert late.value.timeout <= 0.02

    asyncio.run(main())
    assert (guard.snapshot().failed, guard.snapshot().abandoned) == (0, 1)


def test_nested_calls_time_out_once_and_name_the_one_whose_deadline_it_was():
    """Only the owner of the deadline fails; the inner guard's dependency is not blamed."""
    outer, inner = (Guard(name, max_concurrent_calls=1, timeout=HANG) for name in ("outer", "inner"))

    async def main():
        with pytest.raises(CallTimeoutError) as late:
            async with outer.call(timeout=0.02), inner.call():
                await hang()
        assert late.value.guard == "outer"
        assert asyncio.current_task().cancelling() == 0

    asyncio.run(main())
    assert (outer.snapshot().failed, inner.snapshot().failed, inner.snapshot().abandoned) == (1, 0, 1)


def test_the_inner_of_two_calls_may_time_out_alone():
    """The outer one catches it and goes on."""
    outer, inner = (Guard(name, max_concurrent_calls=1, timeout=HANG) for name in ("outer", "inner"))

    async def main():
        async with outer.call():
            with pytest.raises(CallTimeoutError) as late:
                async with inner.call(timeout=0.02):
                    await hang()
        assert late.value.guard == "inner"

    asyncio.run(main())
    assert (outer.snapshot().succeeded, inner.snapshot().failed) == (1, 1)


def test_the_same_guard_nested_counts_one_failure_for_one_timeout():
    """Both calls own a deadline at the same moment; the outer one reports it."""
    guard = Guard("db", max_concurrent_calls=2, timeout=0.02)

    async def main():
        with pytest.raises(CallTimeoutError):
            async with guard.call(), guard.call(timeout=HANG):
                await hang()
        assert asyncio.current_task().cancelling() == 0

    asyncio.run(main())
    assert guard.snapshot().failed == 1


def test_a_deadline_inherited_by_another_task_stops_the_call_there():
    """The call whose deadline it is cancels its own task only; a child task needs a timer of its own."""
    outer, inner = (Guard(name, max_concurrent_calls=1, timeout=HANG) for name in ("outer", "inner"))

    async def main():
        async with outer.call(timeout=0.05):
            child = asyncio.create_task(inner.run_async(hang))
            done = asyncio.Event()
            child.add_done_callback(lambda _: done.set())
            with contextlib.suppress(asyncio.CancelledError):
                await done.wait()
            with pytest.raises(CallTimeoutError) as late:
                await asyncio.wait_for(child, 5)
            assert late.value.guard == "inner"

    with pytest.raises(CallTimeoutError, match="outer"):
        asyncio.run(main())
    assert inner.snapshot().abandoned == 1


def test_a_deadline_inherited_from_a_synchronous_call_stops_an_asyncio_call():
    """A thread cannot be stopped, but the loop it runs can stop what runs in it."""
    outer, inner = (Guard(name, max_concurrent_calls=1, timeout=HANG) for name in ("outer", "inner"))
    with outer.call(timeout=0.05), pytest.raises(CallTimeoutError, match="inner"):
        asyncio.run(inner.run_async(hang))
    assert (outer.snapshot().in_use, inner.snapshot().abandoned) == (0, 1)


def test_a_cancellation_from_outside_wins_over_the_timeout():
    """Cancelled before the deadline or in the same tick: CancelledError, no evidence, count restored."""
    guard = Guard("db", max_concurrent_calls=2, timeout=HANG)

    async def cancel_with(timer_first):
        async def body():
            async with guard.call() as call:
                calls.append(call)
                await hang()

        calls = []
        task = asyncio.create_task(body())
        await asyncio.sleep(0)
        first, second = (calls[0].fire, task.cancel) if timer_first else (task.cancel, calls[0].fire)
        first()
        second()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    async def main():
        await cancel_with(timer_first=True)
        await cancel_with(timer_first=False)
        task = asyncio.create_task(guard.run_async(hang))
        await asyncio.sleep(0)
        task.cancel()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert (guard.snapshot().abandoned, guard.snapshot().failed) == (3, 0)


def test_a_body_that_swallows_the_cancellation_is_still_late():
    """It returned, but after its time: the deadline is reported."""
    guard = Guard("db", max_concurrent_calls=1, timeout=0.02)

    async def stubborn():
        try:
            await hang()
        except asyncio.CancelledError:
            return "anyway"

    async def main():
        with pytest.raises(CallTimeoutError):
            await guard.run_async(stubborn)
        assert asyncio.current_task().cancelling() == 0

    asyncio.run(main())
    assert guard.snapshot().failed == 1


def test_a_call_whose_timer_has_fired_is_late_whatever_its_clock_reads(clock):
    """The guard's clock may be behind the loop's, here it stands still: cancelled is cancelled."""
    guard = Guard("db", max_concurrent_calls=1, timeout=0.02, clock=clock)

    async def stubborn():
        with contextlib.suppress(asyncio.CancelledError):
            await hang()

    async def main():
        await guard.run_async(asyncio.sleep, 0)  # from now on calls come in the fast path
        with pytest.raises(CallTimeoutError):
            await guard.run_async(stubborn)
        await guard.run_async(asyncio.sleep, 0)
        with pytest.raises(CallTimeoutError):
            async with guard.call():
                await stubborn()
        assert asyncio.current_task().cancelling() == 0

    asyncio.run(main())
    assert (guard.snapshot().succeeded, guard.snapshot().failed) == (2, 2)


def test_an_error_raised_while_being_cancelled_comes_out_as_it_is():
    """The cleanup's own error is what happened."""
    guard = Guard("db", max_concurrent_calls=1, timeout=0.02)

    async def failing_cleanup():
        try:
            await hang()
        finally:
            raise Boom

    async def main():
        with pytest.raises(Boom):
            await guard.run_async(failing_cleanup)
        assert asyncio.current_task().cancelling() == 0

    asyncio.run(main())
    assert guard.snapshot().failed == 1


def test_a_cleanup_after_the_deadline_may_finish_and_keeps_its_slot():
    """T4: it is not cancelled a second time, is still inside, and can start nothing that is guarded."""
    guard = Guard("db", max_concurrent_calls=1, timeout=0.02)
    other = Guard("other", max_concurrent_calls=1, timeout=HANG)
    seen = []

    @contextlib.asynccontextmanager
    async def transaction():
        try:
            yield
        finally:
            await asyncio.sleep(0.1)
            seen.append(guard.snapshot().in_use)
            with pytest.raises(DeadlineSpentError):
                await other.run_async(hang)
            seen.append("rolled back")

    async def main():
        with pytest.raises(CallTimeoutError, match="'db'"):
            async with guard.call(), transaction():
                await hang()
        assert asyncio.current_task().cancelling() == 0

    asyncio.run(main())
    assert seen == [1, "rolled back"]
    assert (guard.snapshot().in_use, guard.snapshot().failed) == (0, 1)


@pytest.mark.parametrize("inside", [True, False], ids=["thread_is_the_call", "waiting_is_the_call"])
def test_work_that_a_thread_continues_keeps_the_slot_of_its_call(inside):
    """T7: a thread cannot be stopped; only a call inside it is measured to its true end."""
    guard = Guard("db", max_concurrent_calls=1, max_wait_duration=0, timeout=HANG)
    began, release = threading.Event(), threading.Event()

    def work():
        began.set()
        release.wait(HANG)

    async def main():
        waiting = asyncio.to_thread(guard.run, work) if inside else guard.run_async(asyncio.to_thread, work)
        task = asyncio.create_task(waiting)
        await asyncio.to_thread(began.wait, HANG)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        taken = guard.snapshot().in_use
        release.set()
        return taken

    assert asyncio.run(main()) == inside
    wait_until(lambda: guard.snapshot().in_use == 0)


def test_a_task_group_inside_a_deadline_ends_as_one_timeout():
    """No double conversion: the group's children are cancelled, the block raises one CallTimeoutError."""
    guard = Guard("db", max_concurrent_calls=1, timeout=0.02)

    async def main():
        with pytest.raises(CallTimeoutError):
            async with guard.call(), asyncio.TaskGroup() as group:
                group.create_task(hang())
                group.create_task(hang())

    asyncio.run(main())
    assert guard.snapshot().failed == 1


def test_a_scope_of_anyio_and_a_deadline_each_end_their_own_work():
    """T9: whichever is the smaller, inside or outside of the other, and only that one says so."""
    guard = Guard("db", max_concurrent_calls=1, timeout=HANG)
    seen = []

    async def main():
        with anyio.move_on_after(0.02) as scope:
            await guard.run_async(hang)
        seen.append(scope.cancelled_caught)
        async with guard.call():
            with anyio.move_on_after(0.02) as scope:
                await hang()
            seen.append(scope.cancelled_caught)
        with pytest.raises(CallTimeoutError), anyio.move_on_after(HANG) as scope:
            async with guard.call(timeout=0.02):
                await hang()
        seen.append(scope.cancelled_caught)
        with pytest.raises(CallTimeoutError):
            async with guard.call(timeout=0.02), anyio.create_task_group() as group:
                group.start_soon(hang)
                await hang()
        assert asyncio.current_task().cancelling() == 0

    asyncio.run(main())
    now = guard.snapshot()
    assert seen == [True, True, False]
    assert (now.abandoned, now.succeeded, now.failed, now.in_use) == (1, 1, 2, 0)


def test_a_call_entered_outside_a_task_releases_its_slot():
    """Without a task to cancel it is a RuntimeError, and no slot is kept."""
    guard = Guard("db", max_concurrent_calls=1)
    entering = guard.call().__aenter__()
    loop = asyncio.new_event_loop()
    failed = []

    def outside():
        try:
            entering.send(None)
        except RuntimeError as error:
            failed.append(str(error))

    loop.call_soon(outside)
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert failed == ["a guarded call must run inside an asyncio task"]
    assert guard.snapshot().in_use == 0


def test_a_deadline_that_passes_while_queueing_starts_nothing(make_guard, clock):
    """A slot that comes too late is passed on, whichever flavour waited for it."""
    guard = make_guard(max_concurrent_calls=1, max_wait_duration=HANG)
    errors = []

    def wait():
        with deadline(5, clock=clock), pytest.raises(DeadlineSpentError) as refusal, guard.call():
            raise AssertionError
        errors.append(refusal.value)

    holder = guard.call()
    holder.__enter__()
    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: guard.snapshot().waiting == 1)
    clock.advance(6)
    holder.__exit__(None, None, None)
    thread.join()
    assert errors[0].guard == "db"

    async def main():
        async with guard.call():
            with deadline(5, clock=clock):
                waiter = asyncio.create_task(guard.run_async(hang))
                await asyncio.sleep(0)
                assert guard.snapshot().waiting == 1
                clock.advance(6)
        with pytest.raises(DeadlineSpentError):
            await waiter

    asyncio.run(main())
    assert guard.snapshot().rejected == {"deadline_spent": 2}


def test_a_wait_is_bounded_by_the_callers_deadline():
    """The refusal says which bound it was."""
    guard = Guard("db", max_concurrent_calls=1, max_wait_duration=HANG)
    with guard.call(), deadline(0.02):
        errors = []
        thread = threading.Thread(target=contextvars.copy_context().run, args=(_note_refusal, guard, errors))
        thread.start()
        thread.join()
    assert errors == ["deadline_spent"]


def _note_refusal(guard, errors):
    try:
        guard.run(lambda: None)
    except DeadlineSpentError as error:
        errors.append(error.reason)


# --- timers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_thousands_of_calls_leave_no_timer_behind(rounds):
    """One timer for all deadlines of a loop, and none kept for those that were met."""
    guard = Guard("db", max_concurrent_calls=200_000, timeout=HANG, breaker=None)

    async def main():
        calls = [guard.call() for _ in range(1000)]
        for _ in range(rounds):
            for call in calls:
                await call.__aenter__()
            timers = asyncio.get_running_loop()._scheduled
            assert sum(not timer.cancelled() for timer in timers) == 1
            for call in calls:
                await call.__aexit__(None, None, None)
            calls = [guard.call() for _ in calls]
        assert not loop_timers.timers().armed

    asyncio.run(main())


def test_a_closed_loop_is_forgotten():
    """A timer still planned when its loop ends keeps neither the loop nor itself alive."""
    guard = Guard("db", max_concurrent_calls=1, timeout=HANG)
    loops = []

    async def main():
        loops.append(weakref.ref(asyncio.get_running_loop()))
        async with guard.call():
            pass

    for _ in range(5):
        asyncio.run(main())
    gc.collect()
    # The last one may still be remembered by its thread.
    assert sum(loop() is not None for loop in loops) <= 1


class SteppedLoop(asyncio.SelectorEventLoop):
    """A loop whose clock a test moves."""

    now = 0.0

    def time(self):
        return self.now


def test_timers_fire_in_order_and_the_rest_is_planned_again():
    """Three deadlines armed latest first end earliest first."""
    guard = Guard("db", max_concurrent_calls=3)
    ended = []

    async def wait(seconds):
        with pytest.raises(CallTimeoutError):
            async with guard.call(timeout=seconds):
                await hang()
        ended.append(seconds)

    async def main():
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(wait(seconds)) for seconds in (6, 4, 2)]
        for now in (0, 2.1, 4.1, 6.1):
            loop.now = now
            for _ in range(20):
                await asyncio.sleep(0)
            assert len(ended) == now // 2
        await asyncio.gather(*tasks)

    with asyncio.Runner(loop_factory=SteppedLoop) as runner:
        runner.run(main())
    assert ended == [2, 4, 6]


class Bell(loop_timers.Timer):
    """A timer that notes when it fired and then runs an action."""

    __slots__ = ("_then", "due", "fired")

    def __init__(self, then=lambda: None):
        self._then, self.fired = then, []

    def fire(self):
        self.fired.append(self.due)
        return self._then()


def test_a_timer_may_fire_again_and_disarm_others():
    """One that says when is planned again; one disarmed by another, due in the same moment, stays silent."""

    async def main():
        timers, loop = loop_timers.timers(), asyncio.get_running_loop()
        again = [loop.time() + 0.02]
        silent = Bell()
        loud = Bell(lambda: timers.disarm(silent))
        twice = Bell(lambda: again.pop() if again else None)
        planned = again[0]
        for bell in (twice, loud, silent):
            timers.arm(bell, 0.001)
        time.sleep(0.002)  # all are due in one go  # noqa: ASYNC251
        while timers.armed:
            await asyncio.sleep(0.001)
        return twice.fired[1] == planned, len(twice.fired), len(loud.fired), silent.fired

    assert asyncio.run(main()) == (True, 2, 1, [])


def test_cancel_at_cancels_a_task_without_a_call():
    """As a pool does for the deadline of a checkout; disarmed in time, it never fires."""

    async def main():
        silenced = task_timeout.cancel_at(time.monotonic() + 0.01)
        assert not silenced.disarm(None)
        alarm = task_timeout.cancel_at(time.monotonic() + 0.02)
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await hang()
        assert alarm.disarm(cancelled.value)
        await asyncio.sleep(0)
        return silenced.fired

    assert asyncio.run(main()) is False


def test_calls_after_a_timeout_are_as_before(run, make_guard):
    """The guard is whole again."""
    guard = make_guard(timeout=5, max_concurrent_calls=1)
    succeed(run, guard, times=3)
    guard.force_open()
    be_refused(run, guard)


def test_a_timer_that_raises_stops_no_other(caplog):
    """It is logged, and timers that were armed beside it and after it still fire."""
    fired = []

    class Note(loop_timers.Timer):
        __slots__ = ("due", "name")

        def __init__(self, name):
            self.name = name

        def fire(self):
            fired.append(self.name)
            if self.name == "broken":
                raise ZeroDivisionError

    async def main():
        timers = loop_timers.timers()
        for name, delay in (("broken", 0.01), ("beside", 0.01), ("later", 0.03)):
            timers.arm(Note(name), delay)
        while len(fired) < 3:
            await asyncio.sleep(0.005)
        assert not timers.armed

    asyncio.run(main())
    assert fired == ["broken", "beside", "later"]
    assert "could not be kept" in caplog.text
