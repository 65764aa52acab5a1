"""The vectors PB1-PB11 of pybreaker's own suite, and the rows of docs/guides/pybreaker.md that differ."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import logging
import threading
from datetime import UTC, datetime, timedelta
from functools import partial

import pybreaker
import pytest

from guardrails import CircuitBreaker, CircuitOpenError, ConfigurationError
from guardrails.events import CallFinished, CallRejected, StateChanged
from support.calls import Boom, boom, play


class Ours(CircuitBreaker):
    """With the two verbs of a guard, so that the `run` fixture can drive it."""

    run = CircuitBreaker.call
    run_async = CircuitBreaker.acall


@pytest.fixture
def make(clock):
    """Builds breakers on the fake clock that open at the third failure and raise the call's own error."""

    def build(**options):
        return Ours(**({"fail_max": 3, "clock": clock, "throw_new_error_on_trip": False} | options))

    return build


@pytest.fixture(scope="module")
def redis_client():
    """A client of a server of our own, or a skip where there is none."""
    redis = pytest.importorskip("redis")
    servers = pytest.importorskip("guardrails.testing.servers")
    with servers.ValkeyServer.start() as server, redis.Redis.from_url(server.url()) as client:
        yield client


@pytest.fixture(params=["memory", "redis"])
def storage(request):
    """A storage of each of pybreaker's kinds, closed and empty."""
    if request.param == "memory":
        return partial(pybreaker.CircuitMemoryStorage)
    client = request.getfixturevalue("redis_client")
    client.flushall()
    return lambda state: pybreaker.CircuitRedisStorage(state, client)


class Diary(pybreaker.CircuitBreakerListener):
    """Records the calls of a listener."""

    def __init__(self):
        self.lines = []

    def before_call(self, cb, func, *args, **kwargs):
        self.lines.append("before")

    def success(self, cb):
        self.lines.append("success")

    def failure(self, cb, exc):
        self.lines.append("failure")

    def state_change(self, cb, old_state, new_state):
        self.lines.append(f"{old_state.name}>{new_state.name}")


class Lookup(LookupError):
    """An error that is no system error."""


def look_up():
    raise Lookup


def refuse(run, breaker):
    called = []
    with pytest.raises(CircuitOpenError) as refusal:
        run(breaker, called.append, 1)
    assert not called
    assert isinstance(refusal.value, pybreaker.CircuitBreakerError)
    return refusal.value


def in_threads(count, target):
    threads = [threading.Thread(target=target) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# --- the vectors ---------------------------------------------------------------------------------


def test_pb1_opens_at_fail_max(run, make, storage):
    """PB1: F F is closed with count 2; the third opens with count 3 and raises its own error."""
    breaker = make(state_storage=storage("closed"))
    play(run, breaker, "FF")
    assert (breaker.current_state, breaker.fail_counter) == ("closed", 2)
    play(run, breaker, "F")
    assert (breaker.current_state, breaker.fail_counter) == ("open", 3)


def test_pb1_the_error_that_opens_is_replaced_by_default_and_is_the_cause(run, clock):
    """PB1: ``throw_new_error_on_trip=True`` is the default, as pybreaker's; the replacement is no refusal."""
    breaker = Ours(fail_max=3, clock=clock)
    play(run, breaker, "FF")
    with pytest.raises(pybreaker.CircuitBreakerError, match="Failures threshold reached") as new:
        run(breaker, boom)
    assert isinstance(new.value.__cause__, Boom)
    assert not isinstance(new.value, CircuitOpenError), "the call did start"
    breaker.half_open()
    with pytest.raises(pybreaker.CircuitBreakerError, match="Trial call failed"):
        run(breaker, boom)


def test_pb2_a_success_clears_the_count_and_an_excluded_error_leaves_it(run, make, storage):
    """PB2: F S counts 0; F X counts 1, where pybreaker takes X for a success."""
    breaker = make(exclude=[LookupError], state_storage=storage("closed"))
    play(run, breaker, "FS")
    assert breaker.fail_counter == 0
    play(run, breaker, "F")
    with pytest.raises(Lookup):
        run(breaker, look_up)
    assert breaker.fail_counter == 1


def test_pb3_a_failing_probe_reopens(run, make, clock, storage):
    """PB3: F F F, wait, F: open with count 4, never closed in between."""
    diary = Diary()
    breaker = make(listeners=[diary], state_storage=storage("closed"))
    play(run, breaker, "FFF")
    clock.advance(60)
    play(run, breaker, "F")
    assert (breaker.current_state, breaker.fail_counter) == ("open", 4)
    assert [line for line in diary.lines if ">" in line] == [
        "closed>open",
        "open>half-open",
        "half-open>open",
    ]


def test_pb4_a_call_while_open_does_not_run_and_a_good_probe_closes(run, make, clock, storage):
    """PB4: the function runs exactly once, as the probe."""
    breaker = make(state_storage=storage("closed"))
    play(run, breaker, "FFF")
    assert refuse(run, breaker).retry_after == 60
    clock.advance(60)
    play(run, breaker, "S")
    assert (breaker.current_state, breaker.fail_counter) == ("closed", 0)


def test_pb5_success_threshold_counts_successes_of_one_round(run, make, clock, storage):
    """PB5: with 3, S S stays half-open with 1 and 2, S closes; S S F opens and counts 0."""
    breaker = make(success_threshold=3, state_storage=storage("closed"))
    breaker.half_open()
    seen = []
    for _ in range(3):
        play(run, breaker, "S")
        seen.append((breaker.current_state, breaker.success_counter))
    assert seen == [("half-open", 1), ("half-open", 2), ("closed", 0)]
    breaker.half_open()
    play(run, breaker, "SSF")
    assert (breaker.current_state, breaker.success_counter) == ("open", 0)


def test_pb6_failures_of_many_threads_are_counted_exactly(make, storage):
    """PB6: 3 threads x 500 failures are 1500."""
    breaker = make(fail_max=3000, state_storage=storage("closed"))

    def fail():
        for _ in range(500):
            with pytest.raises(Boom):
                breaker.call(boom)

    in_threads(3, fail)
    assert breaker.fail_counter == 1500


def test_pb7_one_probe_is_let_in_when_the_wait_is_over(make, clock):
    """PB7: of five threads that arrive together one runs and the others are refused at once."""
    diary = Diary()
    breaker = make(fail_max=1, listeners=[diary])
    breaker.open()
    clock.advance(60)
    arrived, refused, ran = threading.Barrier(5), [], []

    def fail_once_all_are_through():
        ran.append(1)
        arrived.wait()
        raise Boom

    def probe():
        arrived.wait()
        try:
            breaker.call(fail_once_all_are_through)
        except CircuitOpenError as error:
            refused.append(error)
            arrived.wait()
        except Boom:
            pass

    in_threads(5, probe)
    assert (len(ran), len(refused)) == (1, 4)
    assert diary.lines.count("open>half-open") == 1


def test_pb8_no_more_failures_than_fail_max_are_counted(make):
    """PB8: 3 threads x 2000 calls that fail count exactly ``fail_max``."""
    breaker = make(fail_max=3000)

    def fail():
        for _ in range(2000):
            with pytest.raises((Boom, CircuitOpenError)):
                breaker.call(boom)

    in_threads(3, fail)
    assert breaker.fail_counter == 3000


def test_pb8_a_shared_store_counts_at_most_one_more_for_each_thread(make, redis_client):
    """PB8: Redis counts by itself, so calls that end together may all be counted."""
    redis_client.flushall()
    store = pybreaker.CircuitRedisStorage("closed", redis_client)
    breaker = make(fail_max=300, state_storage=store)

    def fail():
        for _ in range(200):
            with pytest.raises((Boom, CircuitOpenError)):
                breaker.call(boom)

    in_threads(3, fail)
    assert 300 <= breaker.fail_counter < 303


def test_pb9_manual_transitions_are_reported_once_and_in_order(make, storage):
    """PB9: open, half_open, close; a repeated one changes nothing and is not reported."""
    diary = Diary()
    breaker = make(listeners=[diary], state_storage=storage("closed"))
    for transition in (breaker.open, breaker.half_open, breaker.close):
        transition()
        transition()
    assert diary.lines == ["closed>open", "open>half-open", "half-open>closed"]


def test_pb10_redis_that_fails_gives_the_fallback_state(make, redis_client, caplog):
    """PB10: pybreaker's store answers its fallback, and calls go by that."""
    store = pybreaker.CircuitRedisStorage("closed", redis_client, fallback_circuit_state="open")
    breaker = make(state_storage=store)
    redis_client.delete("pybreaker:state")
    assert breaker.state.name == "open"


def test_pb11_a_new_breaker_keeps_what_the_store_has(make, storage):
    """PB11: state, count and time of an existing store survive (pybreaker #24, #26)."""
    for state in ("open", "closed", "half-open"):
        store = storage("closed")
        store.state = state
        store.reset_counter()
        store.increment_counter()
        before = store.opened_at
        breaker = make(state_storage=store)
        assert (breaker.state.name, breaker.fail_counter) == (state, 1)
        assert store.opened_at == before


# --- what differs: docs/guides/pybreaker.md -------------------------------------------------------------


def test_no_lock_is_held_while_the_function_runs(make):
    """Eight threads are inside one breaker at once."""
    breaker = make()
    together = threading.Barrier(8, timeout=10)
    in_threads(8, lambda: breaker.call(together.wait))
    assert breaker.current_state == "closed"


def test_a_result_of_an_earlier_generation_changes_nothing(run, make, clock):
    """Calls that began before the circuit opened neither close nor reopen it."""
    for late in (None, Boom()):
        for now in ("open", "half-open", "closed"):
            breaker = make()
            block = breaker.calling()
            block.__enter__()
            play(run, breaker, "FFF")
            if now != "open":
                clock.advance(60)
                if now == "closed":
                    play(run, breaker, "S")
                else:
                    breaker.half_open()
            count = breaker.fail_counter
            block.__exit__(type(late), late, None)
            assert (breaker.current_state, breaker.fail_counter) == (now, count)


@pytest.mark.parametrize("leaving", [asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_cancelled_call_is_no_evidence_and_frees_its_lease(run, make, clock, leaving):
    """Control-flow exceptions come out unchanged and count nothing."""

    def leave():
        raise error

    breaker = make(fail_max=1)
    for state in ("closed", "half-open"):
        breaker.state = state
        for _ in range(3):
            error = leaving()
            with pytest.raises(leaving) as caught:
                breaker.call(leave) if leaving is not asyncio.CancelledError else run(breaker, leave)
            assert caught.value is error or run.is_async
        assert (breaker.current_state, breaker.fail_counter) == (state, 0)


def test_a_lost_probe_makes_room_when_its_lease_is_over(run, make, clock):
    """A probe that never ends keeps others out for ten seconds, not for ever."""
    breaker = make(success_threshold=1)
    breaker.half_open()
    lost = breaker.calling()
    lost.__enter__()
    assert refuse(run, breaker).retry_after is None
    clock.advance(10)
    play(run, breaker, "S")
    assert breaker.current_state == "closed"


def test_as_many_probes_at_once_as_successes_are_missing(run, make):
    """With ``success_threshold=3`` three run at once, and after one success two."""
    breaker = make(success_threshold=3)
    breaker.half_open()
    play(run, breaker, "S")
    probes = [breaker.calling() for _ in range(2)]
    for probe in probes:
        probe.__enter__()
    refuse(run, breaker)
    for probe in probes:
        probe.__exit__(None, None, None)
    assert breaker.current_state == "closed"


def test_a_wall_clock_that_jumps_changes_nothing(run, make, clock, monkeypatch):
    """An open period is measured on the monotonic clock."""
    breaker = make()
    play(run, breaker, "FFF")
    opened = breaker._state_storage.opened_at
    for jump in (timedelta(hours=-1), timedelta(days=20_000)):
        assert opened == breaker._state_storage.opened_at
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("guardrails._pybreaker.circuit.datetime", _shifted(jump))
            refuse(run, breaker)
    clock.advance(60)
    play(run, breaker, "S")


def _shifted(jump):
    class Shifted(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + jump

    return Shifted


@pytest.mark.parametrize(("age", "due"), [(59, False), (61, True), (-3600, False)])
def test_a_stored_opening_is_placed_by_the_wall_clock_once(run, make, clock, age, due):
    """A circuit found open counts on from when it was opened; a future time waits one period at most."""
    store = pybreaker.CircuitMemoryStorage("open")
    store.opened_at = datetime.now(UTC) - timedelta(seconds=age)
    breaker = make(state_storage=store)
    if not due:
        assert 0 < refuse(run, breaker).retry_after <= 60
        clock.advance(60)
    play(run, breaker, "S")


def test_an_opening_by_another_process_delays_the_probe(run, make, clock):
    """When the wait is over the storage is read once more for a later opening."""
    store = pybreaker.CircuitMemoryStorage("closed")
    breaker = make(state_storage=store)
    breaker.open()
    clock.advance(60)
    store.opened_at = datetime.now(UTC) + timedelta(seconds=1)
    refuse(run, breaker)
    clock.advance(60)
    play(run, breaker, "S")


def test_a_store_without_a_time_and_a_time_without_a_zone_are_understood(run, make):
    """No time means a probe at once; a time without a zone is UTC."""
    play(run, make(state_storage=pybreaker.CircuitMemoryStorage("open")), "S")
    store = pybreaker.CircuitMemoryStorage("open")
    store.opened_at = datetime.now(UTC).replace(tzinfo=None)
    refuse(run, make(state_storage=store))


def test_a_transition_by_another_process_is_reported_and_not_written(make, storage):
    """Two breakers on one storage: the second's listeners are notified, the storage's counters stay."""
    store, diary = storage("closed"), Diary()
    first, second = make(state_storage=store, success_threshold=3), make(state_storage=store)
    second.add_listener(diary)
    first.half_open()
    first.call(lambda: None)
    assert second.state.name == "half-open"
    assert diary.lines == ["closed>half-open"]
    assert store.success_counter == 1
    first.open()
    with pytest.raises(CircuitOpenError):
        second.call(lambda: None)
    first.close()
    assert second.call(lambda: 42) == 42
    assert diary.lines[1:] == ["half-open>open", "open>closed", "before", "success"]


class Poisoned(pybreaker.CircuitMemoryStorage):
    """A store that fails, or talks nonsense."""

    broken = False

    @property
    def state(self):
        if self.broken:
            raise OSError
        return "banana" if self._state == "poisoned" else self._state

    @state.setter
    def state(self, state):
        if self.broken:
            raise OSError
        self._state = state

    @property
    def counter(self):
        if self.broken:
            raise OSError
        return self._fail_counter

    def increment_counter(self):
        if self.broken:
            raise OSError
        super().increment_counter()


def test_a_storage_that_raises_fails_no_call(run, make, caplog):
    """The last known state holds, results and errors come through, and the log says so."""
    store = Poisoned("closed")
    breaker = make(state_storage=store)
    store.broken = True
    play(run, breaker, "SFSF")
    assert "a circuit's storage raised" in caplog.text
    store.broken = False
    breaker.open()
    store.broken = True
    refuse(run, breaker)


class Dark(pybreaker.CircuitMemoryStorage):
    """A store that forgets what it was asked: as one whose every reply gets lost."""

    @property
    def opened_at(self):
        raise OSError

    @opened_at.setter
    def opened_at(self, moment):
        raise OSError


def test_a_storage_that_fails_to_give_the_opening_time_admits_a_probe(run, make, caplog):
    """As one without a time; an opening by this process itself keeps its wait."""
    store = Dark("open")
    breaker = make(state_storage=store)
    play(run, breaker, "S")
    breaker.open()
    refuse(run, breaker)
    assert "a circuit's storage raised" in caplog.text


def test_a_transition_seen_by_two_threads_is_reported_once(make):
    """Another thread has adopted it, and had the lock, between our read and our lock."""
    diary, quicker = Diary(), []

    class Contested(contextlib.ExitStack):
        def __enter__(self):
            while quicker:
                quicker.pop()()
            self.enter_context(lock)
            return super().__enter__()

    store = pybreaker.CircuitMemoryStorage("closed")
    breaker = make(state_storage=store, listeners=[diary])
    lock, breaker._circuit.lock = breaker._circuit.lock, Contested()
    store._state = "half-open"
    quicker.append(lambda: breaker.state)
    assert breaker.state.name == "half-open"
    assert (quicker, diary.lines) == ([], ["closed>half-open"])


def test_a_failure_counted_while_another_thread_resets_the_circuit_does_not_open_it(make):
    """The store counts without our lock, as Redis does, so the other thread comes in between."""

    class ResetsMeanwhile(pybreaker.CircuitMemoryStorage):
        """A store whose reply arrives after another thread has closed the circuit again."""

        def increment_counter(self):
            super().increment_counter()
            breaker.close()
            self._fail_counter = 5

    breaker = make(state_storage=ResetsMeanwhile("closed"), fail_max=5)
    with pytest.raises(Boom):
        breaker.call(boom)
    assert breaker.current_state == "closed"


def test_an_unknown_state_in_the_store_is_ignored(run, make, caplog):
    """A corrupt key does not take the service down."""
    store = Poisoned("closed")
    breaker = make(state_storage=store)
    store.state = "poisoned"
    play(run, breaker, "SF")
    assert breaker.current_state == "closed"
    assert "'banana'" in caplog.text
    with pytest.raises(ValueError, match="banana"):
        breaker.state = "banana"


def test_listeners_run_without_the_lock_and_cannot_break_a_call(run, make, caplog):
    """A listener may raise, or use the breaker from another thread, and the call's result stands."""

    class Meddler(Diary):
        def success(self, cb):
            in_threads(1, cb.close)
            raise ZeroDivisionError

        def state_change(self, cb, old_state, new_state):
            super().state_change(cb, old_state, new_state)
            in_threads(1, lambda: cb.state)
            raise ZeroDivisionError

    meddler = Meddler()
    breaker = make(listeners=[meddler])
    play(run, breaker, "SFFF")
    assert "closed>open" in meddler.lines
    assert caplog.text.count("a listener of circuit") == 2


def test_both_kinds_of_listeners_are_told(run, make, clock):
    """pybreaker's objects and guardrails' callables, each in its own words."""
    diary, events = Diary(), []

    def changes_only(event):
        changes.append(event)

    changes, changes_only.events = [], (StateChanged,)
    breaker = make(fail_max=1, listeners=[diary, events.append, changes_only], name="orders")
    play(run, breaker, "SF")
    refuse(run, breaker)
    assert diary.lines == ["before", "success", "before", "failure", "closed>open"]
    assert [type(event) for event in events] == [CallFinished, StateChanged, CallFinished, CallRejected]
    assert [event.seq for event in events] == [1, 2, 3, 4]
    assert [(event.guard, event.old, event.new, event.cause) for event in changes] == [
        ("orders", "closed", "open", "consecutive_failures")
    ]
    breaker.remove_listener(diary)
    assert diary not in breaker.listeners


def test_exclude_takes_classes_whatever_their_metaclass_and_survives_a_broken_rule(run, make, caplog):
    """A class with a metaclass excludes its own only; a rule that raises lets the error count."""

    class Meta(type):
        pass

    class Strange(Exception, metaclass=Meta):
        pass

    def raise_strange():
        raise Strange

    breaker = make(exclude=[Strange])
    play(run, breaker, "F")
    assert breaker.fail_counter == 1
    with pytest.raises(Strange):
        run(breaker, raise_strange)
    assert breaker.fail_counter == 1
    breaker.add_excluded_exception(lambda error: 1 / 0)
    play(run, breaker, "F")
    assert breaker.fail_counter == 2


def test_a_refusal_of_an_inner_guard_is_not_counted_again(run, make):
    """The inner guard has counted it."""
    inner, outer = make(name="inner"), make(fail_max=1)
    inner.open()
    with pytest.raises(CircuitOpenError):
        outer.call(inner.call, lambda: None)
    assert outer.fail_counter == 0


# --- all forms of calls --------------------------------------------------------------------------


def forms():
    def function():
        raise Boom

    async def coroutine_function():
        raise Boom

    def generator():
        yield 1
        raise Boom

    async def async_generator():
        yield 1
        raise Boom

    class Called:
        async def __call__(self):
            raise Boom

    def returns_coroutine():
        return coroutine_function()

    return [
        *(function, coroutine_function, generator, async_generator, Called(), returns_coroutine),
        *(partial(coroutine_function), partial(generator)),
    ]


def exhaust(result):
    if inspect.isgenerator(result):
        list(result)
    elif inspect.isasyncgen(result):
        asyncio.run(_collect(result))
    elif inspect.isawaitable(result):
        asyncio.run(_await(result))


async def _await(awaitable):
    return await awaitable


async def _collect(stream):
    return [item async for item in stream]


@pytest.mark.parametrize("form", range(8))
@pytest.mark.parametrize("how", ["call", "decorator", "empty decorator"])
def test_every_form_is_measured_at_its_true_end(make, form, how):
    """Whatever is decorated: its failures are seen, and the circuit refuses it."""
    breaker = make()
    fn = forms()[form]
    guarded = {"call": partial(breaker.call, fn), "decorator": breaker(fn), "empty decorator": breaker()(fn)}[
        how
    ]
    for count in (1, 2, 3):
        with pytest.raises(Boom):
            exhaust(guarded())
        assert breaker.fail_counter == count
    with pytest.raises(CircuitOpenError):
        exhaust(guarded())


def test_decorated_coroutine_functions_stay_coroutine_functions(make):
    """Frameworks ask; and the name and signature stay."""

    @make()
    async def load(order: int) -> int:
        """Loads."""
        return order

    assert inspect.iscoroutinefunction(load)
    assert (load.__name__, load.__doc__, str(inspect.signature(load))) == (
        "load",
        "Loads.",
        "(order: 'int') -> 'int'",
    )
    assert asyncio.run(load(3)) == 3


def test_pybreakers_names_for_asynchronous_calls_need_no_tornado(make):
    """``call_async`` and ``__pybreaker_call_async`` take any awaitable."""
    breaker = make()

    async def one():
        return 1

    assert asyncio.run(breaker.call_async(one)) == 1
    assert asyncio.run(breaker(__pybreaker_call_async=True)(one)()) == 1
    with pytest.raises(TypeError, match="unknown options: bad"):
        breaker(bad=True)


def test_a_generator_passes_everything_on_and_leaving_it_is_no_evidence(make):
    """What is sent, thrown and returned goes through; a break counts nothing."""
    breaker = make(fail_max=1)

    @breaker
    def echo():
        got = yield 0
        try:
            got = yield got
        except Boom:
            got = "caught"
        yield got
        return "end"

    stream = echo()
    assert (next(stream), stream.send("sent"), stream.throw(Boom())) == (0, "sent", "caught")
    with pytest.raises(StopIteration) as end:
        next(stream)
    assert end.value.value == "end"
    for _ in range(3):
        stream = echo()
        next(stream)
        stream.close()
    never_started = echo()
    del never_started
    assert (breaker.current_state, breaker.fail_counter) == ("closed", 0)


def test_an_asynchronous_generator_passes_everything_on(make):
    """``asend``, ``athrow`` and ``aclose`` reach it."""
    breaker, closed = make(fail_max=1), []

    @breaker
    async def echo():
        try:
            got = yield 0
            try:
                got = yield got
            except Boom:
                got = "caught"
            yield got
        finally:
            closed.append(1)

    async def use():
        stream = echo()
        assert await anext(stream) == 0
        assert await stream.asend("sent") == "sent"
        assert await stream.athrow(Boom()) == "caught"
        await stream.aclose()
        assert closed == [1]
        assert await _collect(echo()) == [0, None, None]

    asyncio.run(use())
    assert (breaker.current_state, breaker.fail_counter) == ("closed", 0)


def test_a_coroutine_handed_out_by_a_plain_function_is_the_call(make):
    """It is admitted, and counted, when it is awaited."""
    breaker = make()

    async def load():
        return 42

    def begin():
        return load()

    with pytest.raises(Boom):
        breaker.call(boom)
    coroutine = breaker.call(begin)
    assert breaker.fail_counter == 1
    assert asyncio.run(coroutine) == 42
    assert breaker.fail_counter == 0


def test_a_refused_coroutine_is_closed(make):
    """A coroutine made while the circuit was closed is refused when awaited, without a warning."""
    breaker = make()

    async def never():
        raise AssertionError

    waiting = breaker.call(never)
    breaker.open()
    with pytest.raises(CircuitOpenError):
        asyncio.run(_await(waiting))
    gc.collect()


def test_a_block_is_one_call(make):
    """``with`` and ``async with``; used twice it is an error; as a decorator it is one for each call."""
    breaker = make(throw_new_error_on_trip=True)
    with breaker.calling():
        pass

    async def block():
        async with breaker.calling():
            raise Boom

    with pytest.raises(Boom):
        asyncio.run(block())
    assert breaker.fail_counter == 1
    used = breaker.calling()
    with used:
        pass
    with pytest.raises(RuntimeError, match="used once"):
        used.__enter__()
    decorated = breaker.calling()(boom)
    for _ in range(2):
        with pytest.raises(Boom):
            decorated()
    with pytest.raises(pybreaker.CircuitBreakerError, match="threshold"):
        decorated()
    with pytest.raises(CircuitOpenError), breaker.calling():
        raise AssertionError


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("fail_max", value) for value in (0, -1, True, "5", None, 1.5, 10**400)],
        *[("success_threshold", value) for value in (0, True, "1", None)],
        *[("reset_timeout", value) for value in (-1, True, "60", None, float("nan"), float("inf"), 10**400)],
    ],
)
def test_settings_are_checked_when_given_and_when_changed(make, field, value):
    """Each is refused by name."""
    with pytest.raises(ConfigurationError, match=f"CircuitBreaker: {field} must be"):
        CircuitBreaker(**{field: value})
    with pytest.raises(ConfigurationError, match=f"CircuitBreaker: {field} must be"):
        setattr(make(), field, value)


def test_settings_may_be_changed_at_run_time(run, make, clock):
    """``fail_max``, ``reset_timeout`` and ``success_threshold`` hold from the next decision on."""
    breaker = make()
    breaker.fail_max, breaker.reset_timeout, breaker.success_threshold = 1, 5, 2
    play(run, breaker, "F")
    breaker.reset_timeout = 4
    clock.advance(4)
    play(run, breaker, "SS")
    assert breaker.current_state == "closed"
    assert (breaker.fail_max, breaker.reset_timeout, breaker.success_threshold) == (1, 4, 2)


def test_it_is_an_instance_of_pybreakers_class(make):
    """For ``isinstance``, and with the same arguments and defaults."""
    breaker = CircuitBreaker()
    assert isinstance(breaker, pybreaker.CircuitBreaker)
    theirs = inspect.signature(pybreaker.CircuitBreaker).parameters
    ours = inspect.signature(CircuitBreaker).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    assert [name for name in theirs if theirs[name].default != ours[name].default] == []
    assert breaker.open() is True
    assert repr(breaker) == "<CircuitBreaker 'circuit breaker' open>"


def test_transitions_are_logged(make, caplog):
    """Opening is a warning."""
    caplog.set_level(logging.INFO, "guardrails")
    breaker = make(name="orders")
    breaker.open()
    breaker.close()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "circuit 'orders': closed -> open (manual)"),
        ("INFO", "circuit 'orders': open -> closed (manual)"),
    ]
