"""Waiting, cancellation, threads, loops, signals and forks: whatever happens, every slot comes back."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gc
import os
import random
import runpy
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from guardrails import (
    BreakerPolicy,
    BulkheadFullError,
    CallTimeoutError,
    CircuitBreaker,
    CircuitOpenError,
    Guard,
    RejectedError,
)
from guardrails._runtime import fork
from guardrails.events import StateChanged
from support.calls import Boom, counting, fail, trip, tripping
from support.polling import wait_until

LONG = 30


def waiting(guard):
    return guard.snapshot().waiting


def in_use(guard):
    return guard.snapshot().in_use


@contextlib.contextmanager
def quick_switches():
    """Threads change places after every few bytecodes."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def start(*targets):
    threads = [threading.Thread(target=target) for target in targets]
    for thread in threads:
        thread.start()
    return threads


def join(threads):
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


# --- waiting -------------------------------------------------------------------------------------


def test_threads_are_served_in_the_order_they_came(make_guard):
    """B4: first come, first served."""
    guard = make_guard(max_concurrent_calls=1, max_wait_duration=LONG, max_waiting=10)
    served, threads = [], []
    with guard.call():
        for number in range(5):
            threads += start(lambda number=number: guard.run(served.append, number))
            wait_until(lambda number=number: waiting(guard) == number + 1)
    join(threads)
    assert served == [0, 1, 2, 3, 4]


def test_threads_and_tasks_wait_in_one_queue(make_guard):
    """B4, B12: two loops and threads on one guard, in one order."""
    guard = make_guard(max_concurrent_calls=1, max_wait_duration=LONG, max_waiting=10)
    served, threads = [], []

    async def note(number):
        served.append(number)

    with guard.call():
        for number in range(6):
            if number % 2:
                threads += start(lambda number=number: guard.run(served.append, number))
            else:
                threads += start(lambda number=number: asyncio.run(guard.run_async(note, number)))
            wait_until(lambda number=number: waiting(guard) == number + 1)
    join(threads)
    assert served == [0, 1, 2, 3, 4, 5]


def test_a_wait_ends_in_time(make_guard):
    """R19: a wait of 50 ms is over in about 50 ms, in both flavours, and says why."""
    guard = Guard("db", max_concurrent_calls=1, max_wait_duration=0.05, timeout=None)

    async def wait():
        with pytest.raises(BulkheadFullError) as refusal:
            await guard.run_async(asyncio.sleep, LONG)
        return refusal.value.reason

    with guard.call():
        began = time.monotonic()
        assert asyncio.run(wait()) == "queue_timeout"
        reasons = []

        def wait_in_thread():
            try:
                guard.run(lambda: None)
            except BulkheadFullError as error:
                reasons.append(error.reason)

        join(start(wait_in_thread))
        assert reasons == ["queue_timeout"]
        assert 0.1 <= time.monotonic() - began < 5
    assert guard.snapshot().rejected == {"queue_timeout": 2}


def test_a_thread_that_runs_a_loop_is_never_blocked(make_guard):
    """A synchronous call on the event loop does not wait: it would stop those whose slots it waits for."""
    guard = make_guard(max_concurrent_calls=1, max_wait_duration=LONG, max_waiting=10)

    async def main():
        async with guard.call():
            with pytest.raises(BulkheadFullError) as refusal:
                guard.run(lambda: None)
            return refusal.value.reason

    assert asyncio.run(main()) == "bulkhead_full"


def test_an_opening_circuit_dismisses_all_waiters_at_once(make_guard):
    """SM19: five hundred wait, the circuit opens, and the dependency sees none of them."""
    guard = make_guard(max_concurrent_calls=1, max_wait_duration=LONG, max_waiting=500, breaker=tripping())
    called = []

    async def call():
        async def body():
            called.append(1)

        with pytest.raises(CircuitOpenError):
            await guard.run_async(body)

    async def main():
        holder = guard.call()
        await holder.__aenter__()
        tasks = [asyncio.create_task(call()) for _ in range(500)]
        await asyncio.sleep(0)
        assert waiting(guard) == 500
        await holder.__aexit__(Boom, Boom(), None)
        await asyncio.gather(*tasks)

    began = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - began < 10
    assert called == []
    assert guard.snapshot().rejected == {"circuit_open": 500}


def test_growing_wakes_waiters(make_guard):
    """B7."""
    guard = make_guard(max_concurrent_calls=1, max_wait_duration=LONG, max_waiting=10)
    together = threading.Barrier(3, timeout=LONG)
    with guard.call():
        threads = start(*[lambda: guard.run(together.wait)] * 2)
        wait_until(lambda: waiting(guard) == 2)
        guard.resize(3)
        together.wait()
    join(threads)


def test_a_standing_queue_shortens_the_wait_of_new_callers(make_guard, clock):
    """Under lasting overload a new caller waits 5 ms at most, and only if the queue moves at all."""
    guard = make_guard(max_concurrent_calls=1, max_wait_duration=LONG, max_waiting=10)
    done = threading.Event()
    with guard.call():
        patient = start(*[lambda: guard.run(done.wait)] * 2)
        wait_until(lambda: waiting(guard) == 2)
        clock.advance(0.5)
        with pytest.raises(BulkheadFullError, match="the queue is full"):
            guard.run(lambda: None)
        guard.resize(2)
        wait_until(lambda: waiting(guard) == 1)
        with pytest.raises(BulkheadFullError, match="in time"):
            guard.run(lambda: None)
        done.set()
    join(patient)


# --- half-open -----------------------------------------------------------------------------------


@pytest.mark.parametrize("round_", range(5))
def test_a_crowd_in_half_open_runs_the_permitted_number_of_probes(make_guard, clock, run, round_):
    """SM10: threads and tasks arrive together at the end of the wait."""
    told = []
    guard = make_guard(breaker=tripping(permitted_calls_in_half_open_state=3), listeners=[told.append])
    trip(run, guard, clock, wait=5)
    ran, refused = [], []
    gathered, release = threading.Barrier(21, timeout=LONG), threading.Event()

    def probe():
        gathered.wait()
        try:
            guard.run(lambda: ran.append(1) or release.wait(LONG))
        except CircuitOpenError:
            refused.append(1)

    async def probe_async():
        async def body():
            ran.append(1)
            await asyncio.to_thread(release.wait, LONG)

        try:
            await guard.run_async(body)
        except CircuitOpenError:
            refused.append(1)

    async def crowd():
        gathered.wait()
        await asyncio.gather(*[probe_async() for _ in range(50)])

    with quick_switches():
        threads = start(*[probe] * 20, lambda: asyncio.run(crowd()))
        wait_until(lambda: len(refused) == 67)
        release.set()
        join(threads)
    assert len(ran) == 3
    assert [event.new for event in told if isinstance(event, StateChanged)] == ["open", "half_open", "closed"]


def test_an_abandoned_probe_that_is_collected_returns_its_lease(make_guard, clock, run):
    """SM9: a coroutine that is never resumed."""
    guard = make_guard(breaker=tripping(permitted_calls_in_half_open_state=1))
    trip(run, guard, clock, wait=5)

    class Never:
        def __await__(self):
            yield

    async def probe():
        async with guard.call():
            await Never()

    async def main():
        abandoned = probe()
        abandoned.send(None)
        assert in_use(guard) == 1
        del abandoned
        gc.collect()

    asyncio.run(main())
    assert (in_use(guard), guard.state) == (0, "half_open")


# --- cancellation at each step -------------------------------------------------------------------


@pytest.mark.parametrize("steps", range(6))
def test_a_call_cancelled_at_any_step_holds_nothing(make_guard, steps):
    """B2: before the grant, in the tick of the grant, after it, in the body; the next in line is served."""
    guard = make_guard(max_concurrent_calls=1, max_wait_duration=LONG, max_waiting=10)

    async def main():
        holder = guard.call()
        await holder.__aenter__()
        victim = asyncio.create_task(guard.run_async(asyncio.sleep, 0.001))
        heir = asyncio.create_task(guard.run_async(asyncio.sleep, 0))
        for step in range(6):
            if step == 2:
                await holder.__aexit__(None, None, None)
            if step == steps:
                victim.cancel()
            await asyncio.sleep(0)
        with contextlib.suppress(asyncio.CancelledError):
            await victim
        await heir

    asyncio.run(main())
    assert (in_use(guard), waiting(guard)) == (0, 0)


def test_a_slot_granted_in_the_tick_of_a_cancellation_goes_to_the_next(make_guard):
    """Granted first and cancelled first, in the same turn of the loop."""
    for grant_first in (True, False):
        guard = make_guard(max_concurrent_calls=1, max_wait_duration=LONG, max_waiting=10)

        async def main(guard=guard, grant_first=grant_first):
            holder = guard.call()
            await holder.__aenter__()
            victim = asyncio.create_task(guard.run_async(asyncio.sleep, LONG))
            heir = asyncio.create_task(guard.run_async(asyncio.sleep, 0, "heir"))
            await asyncio.sleep(0)
            if not grant_first:
                victim.cancel()
            await holder.__aexit__(None, None, None)
            if grant_first:
                victim.cancel()
            with pytest.raises(asyncio.CancelledError):
                await victim
            assert await heir == "heir"

        asyncio.run(main())
        assert in_use(guard) == 0


def test_a_wait_that_ends_while_the_slot_is_granted(make_guard):
    """B3: ten rounds of ten threads whose waits end about when slots come free; nothing is lost."""
    guard = Guard(
        "db", max_concurrent_calls=3, max_wait_duration=0.002, max_waiting=50, timeout=None, breaker=None
    )
    served, refused = [], []

    def work():
        for _ in range(20):
            try:
                guard.run(lambda: served.append(time.sleep(0.001)))
            except BulkheadFullError:
                refused.append(1)

    join(start(*[work] * 10))
    assert len(served) + len(refused) == 200
    assert (in_use(guard), guard.snapshot().admitted) == (0, len(served))


# --- loops ---------------------------------------------------------------------------------------


def test_a_loop_that_was_closed_inherits_no_slot(make_guard):
    """B12: its waiters are passed over."""
    guard = make_guard(max_concurrent_calls=1, max_wait_duration=LONG, max_waiting=10)
    heirs = []
    with guard.call():
        loop = asyncio.new_event_loop()
        task = loop.create_task(guard.run_async(asyncio.sleep, 0))
        loop.run_until_complete(asyncio.sleep(0))
        assert waiting(guard) == 1
        threads = start(lambda: guard.run(heirs.append, 1))
        wait_until(lambda: waiting(guard) == 2)
        loop.close()
    join(threads)
    assert heirs == [1]
    assert in_use(guard) == 0
    task._log_destroy_pending = False
    del task
    gc.collect()


def test_a_loop_closed_in_another_thread_inherits_no_slot(make_guard):
    """The holder leaves in a thread of its own."""
    guard = make_guard(max_concurrent_calls=1, max_wait_duration=LONG, max_waiting=10)
    holder = guard.call()
    holder.__enter__()
    tasks = []

    def wait_and_close():
        loop = asyncio.new_event_loop()
        tasks.append(loop.create_task(guard.run_async(asyncio.sleep, 0)))
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    join(start(wait_and_close))
    assert waiting(guard) == 1
    holder.__exit__(None, None, None)
    assert (in_use(guard), waiting(guard)) == (0, 0)
    tasks[0]._log_destroy_pending = False


def test_one_guard_in_loop_after_loop(make_guard):
    """No loop is remembered."""
    guard = make_guard(max_concurrent_calls=1, timeout=5, max_wait_duration=LONG, max_waiting=10)

    async def main():
        await asyncio.gather(*[guard.run_async(asyncio.sleep, 0) for _ in range(3)])

    for _ in range(3):
        asyncio.run(main())
    assert guard.snapshot().succeeded == 9


def test_no_lock_is_held_while_a_call_runs(make_guard):
    """Eight threads are inside at once, and others may look."""
    guard = make_guard(max_concurrent_calls=8)
    together = threading.Barrier(8, timeout=LONG)
    join(start(*[lambda: guard.run(lambda: (together.wait(), guard.snapshot()))] * 8))
    assert guard.snapshot().succeeded == 8


# --- signals and forks ---------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
def test_a_signal_handler_may_use_the_guard(make_guard):
    """P6: a thousand times a second, also in the middle of our own steps, without deadlock."""
    guard = make_guard(max_concurrent_calls=1000, breaker=None)  # handlers are interrupted by handlers
    handled = []

    def handle(number, frame):
        guard.snapshot()
        handled.append(guard.state)
        guard.run(lambda: None)

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        calls = 0
        give_up = time.monotonic() + 60
        while len(handled) < 300 and time.monotonic() < give_up:
            guard.run(lambda: None)
            calls += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(handled) >= 300
    assert in_use(guard) == 0


class Interruption(BaseException):
    """As KeyboardInterrupt, for a thread of our choice."""


def test_an_interrupted_wait_leaves_the_queue(make_guard):
    """B9: an exception that a signal raises in a waiting thread leaves the queue."""
    guard = make_guard(max_concurrent_calls=1, max_wait_duration=LONG, max_waiting=10)

    def interrupt(number, frame):
        raise KeyboardInterrupt

    holder = threading.Event()
    release = threading.Event()
    threads = start(lambda: guard.run(lambda: holder.set() or release.wait(LONG)))
    holder.wait(LONG)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            guard.run(lambda: None)
    finally:
        signal.signal(signal.SIGALRM, before)
        release.set()
    join(threads)
    assert (in_use(guard), waiting(guard)) == (0, 0)


def in_child(check):
    """Runs a check in a forked child and says how it ended; a hang is an end, too."""
    pid = os.fork()
    if pid == 0:
        # A child that hangs does not run a handler of Python's.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        code = 1
        try:
            code = 0 if check() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_starts_without_calls(make_guard):
    """B8, P2: calls, waiters and probes stay in the parent; what the forking call settles is void."""
    guard = make_guard(max_concurrent_calls=2, max_wait_duration=LONG)
    breaker = CircuitBreaker(success_threshold=1)
    breaker.half_open()
    release = threading.Event()
    threads = start(*[lambda: guard.run(release.wait, LONG)] * 2)
    wait_until(lambda: in_use(guard) == 2)
    threads += start(lambda: guard.run(lambda: None))
    wait_until(lambda: waiting(guard) == 1)

    def check():
        now = guard.snapshot()
        with guard.call(), guard.call():
            pass
        with breaker.calling():
            pass
        return (now.in_use, now.waiting, now.oldest_in_flight) == (0, 0, None)

    with breaker.calling():
        assert in_child(check) == 0
    assert (in_use(guard), waiting(guard)) == (2, 1)
    release.set()
    join(threads)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_inside_a_call_settles_in_the_parent_only(make_guard):
    """The child leaves the block as well, and gives back nothing that it never had."""
    guard = make_guard(max_concurrent_calls=1)
    call = guard.call()
    call.__enter__()

    def check():
        call.__exit__(None, None, None)
        with guard.call():
            return in_use(guard) == 1

    assert in_child(check) == 0
    assert in_use(guard) == 1
    call.__exit__(None, None, None)
    assert in_use(guard) == 0


def test_a_forked_lock_works_without_fork_support(monkeypatch):
    """As on Windows, whose `os` has no word of forks."""
    monkeypatch.delattr(os, "register_at_fork", raising=False)
    lock = runpy.run_path(fork.__file__)["ForkedLock"]()
    with lock, lock, ThreadPoolExecutor(1) as other:
        assert not other.submit(lock.pause, 0).result()
    assert lock.pause(0)
    lock.unpause()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forks_among_busy_threads_inherit_no_held_lock(make_guard):
    """P2: however often, and also a fork in a fork."""
    guard = make_guard(max_concurrent_calls=8)
    breaker = CircuitBreaker(fail_max=10**6)
    stop = threading.Event()

    def work():
        while not stop.is_set():
            guard.run(breaker.call, lambda: None)
            with contextlib.suppress(Boom):
                breaker.call(_boom)

    def check():
        fine = guard.run(lambda: True) and breaker.call(lambda: True)
        return fine and in_child(lambda: guard.run(lambda: True)) == 0

    threads = start(*[work] * 3)
    try:
        assert {in_child(check) for _ in range(15)} == {0}
    finally:
        stop.set()
        join(threads)


def _boom():
    raise Boom


# --- everything at once --------------------------------------------------------------------------


class Crowd:
    """Callers of a guard and its compartment, who count themselves while they are inside."""

    def __init__(self, guards):
        self._guards = guards
        self._lock = threading.Lock()
        self._inside = self.most = 0

    @contextlib.contextmanager
    def _counted(self):
        with self._lock:
            self._inside += 1
            self.most = max(self.most, self._inside)
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1

    def in_thread(self, dice):
        """Calls that return or fail, one after the other."""

        def body():
            with self._counted():
                time.sleep(dice.random() * 0.002)
                if dice.random() < 0.3:
                    raise Boom

        for _ in range(150):
            with contextlib.suppress(Boom, RejectedError):
                dice.choice(self._guards).run(body)

    async def in_loop(self, dice):
        """Concurrent calls, of which some are cancelled and some time out."""
        for _ in range(40):
            tasks = [asyncio.create_task(self._call(dice)) for _ in range(8)]
            for task in tasks:
                if dice.random() < 0.4:
                    asyncio.get_running_loop().call_later(dice.random() * 0.01, task.cancel)
            await asyncio.gather(*tasks)

    async def _call(self, dice):
        async def body():
            with self._counted():
                await asyncio.sleep(dice.random() * 0.015)
                if dice.random() < 0.3:
                    raise Boom

        with contextlib.suppress(Boom, RejectedError, CallTimeoutError, asyncio.CancelledError):
            await dice.choice(self._guards).run_async(body)

    def by_hand(self, dice):
        """Resizes, transitions and looks."""
        guard, part = self._guards
        shrink, grow = (lambda: guard.resize(2)), (lambda: guard.resize(3))
        looks = [guard.snapshot, part.snapshot]
        for _ in range(100):
            time.sleep(0.002)
            dice.choice(
                [guard.reset, part.reset, *looks, shrink, grow, guard.force_open, guard.metrics_only]
            )()
        guard.reset()


@pytest.mark.parametrize("attempt", range(3))
def test_whatever_happens_slots_are_conserved(attempt):
    """Threads, tasks of two loops, cancellations, timeouts, resizes and hands on the circuit, at random."""
    seed = random.randrange(10**9)
    print("seed", seed)  # shown when the test fails
    policy = BreakerPolicy(
        sliding_window_size=0.05,
        minimum_number_of_calls=5,
        slow_call_duration_threshold=0.005,
        wait_duration_in_open_state=0.002,
        permitted_calls_in_half_open_state=2,
        max_wait_duration_in_half_open_state=0.01,
    )
    guard = Guard(
        "db", max_concurrent_calls=3, max_wait_duration=0.01, max_waiting=5, timeout=0.01, breaker=policy
    )
    guards = guard, guard.compartment("part")
    crowd = Crowd(guards)
    dice = [random.Random(seed + number) for number in range(6)]
    with quick_switches():
        join(
            start(
                *[lambda d=d: crowd.in_thread(d) for d in dice[:3]],
                *[lambda d=d: asyncio.run(crowd.in_loop(d)) for d in dice[3:5]],
                lambda: crowd.by_hand(dice[5]),
            )
        )
    assert crowd.most <= 3
    for each in guards:
        now = each.snapshot()
        assert (now.in_use, now.waiting) == (0, 0)
        assert now.admitted == now.succeeded + now.failed + now.abandoned
        assert not each._gate.core.breaker.permits
        assert not each._gate.core.outbox


class Races:
    """Callers whose patience, whose grant and whose cancellation come at about the same moment."""

    def __init__(self, guard):
        self._guard = guard
        self._lock = threading.Lock()
        self._inside = 0
        self.most = 0
        self.ends = collections.Counter()

    def _enter(self):
        with self._lock:
            self._inside += 1
            self.most = max(self.most, self._inside)

    def _leave(self):
        with self._lock:
            self._inside -= 1

    def _note(self, end):
        with self._lock:
            self.ends[end] += 1

    def in_thread(self, dice, races):
        """One race after the other: a wait of up to 2 ms for slots that are held about as long."""

        def body():
            self._enter()
            time.sleep(dice.random() * 0.001)
            self._leave()

        for _ in range(races):
            try:
                self._guard.run(body)
                self._note("granted")
            except BulkheadFullError as refusal:
                self._note(refusal.reason)

    async def in_loop(self, dice, races):
        """Sixteen at once, of which every other one is cancelled some time in its wait or its call."""
        loop = asyncio.get_running_loop()
        for _ in range(races // 16):
            tasks = [loop.create_task(self._race(dice)) for _ in range(16)]
            for task in tasks[::2]:
                loop.call_later(dice.random() * 0.004, task.cancel)
            await asyncio.gather(*tasks)

    async def _race(self, dice):
        async def body():
            self._enter()
            try:
                await asyncio.sleep(dice.random() * 0.001)
            finally:
                self._leave()

        try:
            async with self._guard.call(timeout=0.0002 + dice.random() * 0.002):
                await body()
            self._note("granted")
        except BulkheadFullError as refusal:
            self._note(refusal.reason)
        except CallTimeoutError:
            self._note("late")
        except asyncio.CancelledError:
            self._note("cancelled")


def test_ten_thousand_races_of_grant_timeout_and_cancellation_lose_no_slot():
    """B2, B3: two loops and two threads, three slots, and at the end every slot is free and accounted for."""
    seed = random.randrange(10**9)
    print("seed", seed)  # shown when the test fails
    guard = Guard("db", max_concurrent_calls=3, max_wait_duration=0.002, max_waiting=40, breaker=None)
    races = Races(guard)
    dice = [random.Random(seed + number) for number in range(4)]
    with quick_switches():
        join(
            start(
                *[lambda d=d: races.in_thread(d, 1000) for d in dice[:2]],
                *[lambda d=d: asyncio.run(races.in_loop(d, 4000)) for d in dice[2:]],
            )
        )
    print(races.ends)
    now = guard.snapshot()
    assert races.ends.total() == 10_000
    for end in ("granted", "queue_timeout", "cancelled"):
        assert races.ends[end] > 100, "too few to be a race"
    assert races.most <= 3
    assert (now.in_use, now.waiting) == (0, 0)
    assert now.admitted == now.succeeded + now.failed + now.abandoned
    # One that returns late on a busy loop is a failure, too, although no timer has fired.
    assert now.succeeded + now.failed == races.ends["granted"] + races.ends["late"]
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(guard.call())


def test_totals_are_exact_under_threads(make_guard):
    """W7: eight threads, one thousand calls each, and every snapshot adds up."""
    guard = make_guard(max_concurrent_calls=8, breaker=counting(500, failure_rate_threshold=1))
    wrong = []
    stop = threading.Event()

    def look():
        while not stop.is_set():
            now = guard.snapshot()
            if not (now.failures <= now.calls <= 500 and now.admitted >= now.succeeded + now.failed):
                wrong.append(now)

    def work():
        for number in range(1000):
            with contextlib.suppress(Boom):
                guard.run(_boom if number % 2 else int)

    with quick_switches():
        readers = start(look)
        join(start(*[work] * 8))
        stop.set()
        join(readers)
    now = guard.snapshot()
    assert (now.admitted, now.succeeded, now.failed, now.calls) == (8000, 4000, 4000, 500)
    assert not wrong


def test_a_single_caller_after_a_crowd(run, make_guard):
    """The guard is whole after failures."""
    guard = make_guard(max_concurrent_calls=1)
    fail(run, guard, times=5)
    assert in_use(guard) == 0
