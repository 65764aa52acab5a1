"""`@guarded` on every kind of callable: what it keeps, what it refuses, and that nothing goes unmeasured."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import gc
import inspect
import weakref

import pytest

from guardrails import Bulkhead, CallTimeoutError, CircuitOpenError, ConfigurationError, guarded
from support.callables import FORMS, load, load_async, result_of
from support.calls import Boom


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_measured_to_its_true_end(make_guard, form):
    """One admission, one success; refused when the circuit is open."""
    guard = make_guard()
    wrapped = guarded(guard)(FORMS[form])
    assert result_of(wrapped(1, fresh=True)) == "1 True"
    assert (guard.snapshot().admitted, guard.snapshot().succeeded) == (1, 1)
    guard.force_open()
    with pytest.raises(CircuitOpenError):
        result_of(wrapped(1))


@pytest.mark.parametrize("form", FORMS)
def test_each_form_keeps_its_kind(make_guard, form):
    """Async callables are recognised, and the signature stays."""
    plain, wrapped = FORMS[form], guarded(make_guard())(FORMS[form])
    awaits = "async" in form or "coroutine" in form
    assert inspect.iscoroutinefunction(wrapped) == awaits
    assert inspect.signature(wrapped) == inspect.signature(plain)
    assert wrapped.__wrapped__ is plain
    if hasattr(plain, "__name__"):
        assert (wrapped.__name__, wrapped.__doc__) == (plain.__name__, plain.__doc__)


def test_methods_of_each_kind_are_guarded(make_guard):
    """Plain, static and class methods, whichever decorator comes first; one guard for all instances."""
    guard = make_guard()

    class Repository:
        @guarded(guard)
        def one(self, number):
            return self, number

        @guarded(guard)
        async def one_async(self, number):
            return self, number

        @staticmethod
        @guarded(guard)
        def inner_static(number):
            return number

        @guarded(guard)
        @staticmethod
        def outer_static(number):
            return number

        @classmethod
        @guarded(guard)
        def inner_class(cls, number):
            return cls, number

        @guarded(guard)
        @classmethod
        async def outer_class(cls, number):
            return cls, number

    repository = Repository()
    assert repository.one(1) == (repository, 1)
    assert asyncio.run(repository.one_async(1)) == (repository, 1)
    assert Repository.inner_static(1) == repository.outer_static(1) == 1
    assert Repository.inner_class(1) == (Repository, 1)
    assert asyncio.run(repository.outer_class(1)) == (Repository, 1)
    assert guard.snapshot().succeeded == 6


def test_generator_functions_are_refused_at_decoration(make_guard):
    """Between two yields the caller would hold the slot; the message says what to do instead."""

    def generator():
        yield

    async def async_generator():
        yield

    class Stream:
        def __call__(self):
            yield

    for form in (
        generator,
        async_generator,
        Stream(),
        functools.partial(generator),
        functools.partial(Stream()),
    ):
        with pytest.raises(TypeError, match="cannot guard the generator"):
            guarded(make_guard())(form)
    with pytest.raises(TypeError, match="generator"):
        guarded(make_guard())(staticmethod(generator))


@contextlib.contextmanager
def transaction():
    yield


@contextlib.asynccontextmanager
async def transaction_async():
    yield


class Page:
    """Objects that are not functions."""

    @property
    def size(self):
        return 3

    length = functools.cached_property(len)


@pytest.mark.parametrize(
    ("form", "why"),
    [
        (Page, "the class Page"),
        (None, "NoneType, which is no function"),
        (3, "int, which is no function"),
        ("load", "str, which is no function"),
        (vars(Page)["size"], "below @property"),
        (vars(Page)["length"], "below @property"),
        (functools.partialmethod(load), "partialmethod, which is no function"),
        (transaction, "context manager transaction"),
        (transaction_async, "context manager transaction_async"),
        (functools.partial(transaction), "context manager"),
        (staticmethod(transaction), "context manager"),
        (classmethod(Page), "the class Page"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"fallback": lambda error: None}, {"timeout": 1}])
def test_other_objects_than_functions_are_refused_at_decoration(make_guard, form, why, options):
    """With a fallback around it, too."""
    with pytest.raises(TypeError, match=f"cannot guard .*{why}"):
        guarded(make_guard(), **options)(form)


class Later(asyncio.Future):
    """A future of a class of its own."""


def rows():
    yield 1


async def rows_async():
    yield 1


UNFINISHED = {
    "coroutine": (lambda: load_async(1), "a coroutine"),
    "generator": (rows, "a generator"),
    "generator expression": (lambda: (row for row in [1]), "a generator"),
    "async generator": (rows_async, "an async generator"),
    "context manager": (transaction, "a context manager"),
    "async context manager": (transaction_async, "a context manager"),
    "future of a thread": (concurrent.futures.Future, "a future"),
    "future of a class of its own": (lambda: Later(loop=asyncio.get_running_loop()), "a future"),
    "task": (lambda: asyncio.ensure_future(asyncio.sleep(0)), "a future"),
}


@pytest.mark.parametrize("form", UNFINISHED)
@pytest.mark.parametrize("kind", ["run", "decorated", "bulkhead", "run_async", "decorated async", "fallback"])
def test_a_call_that_returns_unfinished_work_is_refused_and_no_failure(make_guard, form, kind):
    """It would be guarded in name only. The dependency has done nothing wrong, and no fallback hides it."""
    make, what = UNFINISHED[form]
    guard = Bulkhead("db", 1) if kind == "bulkhead" else make_guard()

    def make_plain():
        return make()

    async def make_async():
        return make()

    async def main():
        for _ in range(2):
            with pytest.raises(TypeError, match=f"returned {what}, which would run outside the guard"):
                if kind in {"run", "bulkhead"}:
                    guard.run(make_plain)
                elif kind == "decorated":
                    guarded(guard)(make_plain)()
                elif kind == "fallback":
                    guarded(guard, fallback=lambda error: None)(make_plain)()
                elif kind == "run_async":
                    await guard.run_async(make_async)
                else:
                    await guarded(guard)(make_async)()
        await asyncio.sleep(0)

    asyncio.run(main())
    seen = guard.snapshot()
    assert (seen.failed, seen.succeeded, seen.abandoned, seen.in_use) == (0, 0, 2, 0)


def test_results_of_many_classes_are_checked_and_not_kept(make_guard):
    """Classes without end are not kept."""
    guard = make_guard()
    classes = [type("Row", (), {}) for _ in range(1000)]
    seen = [weakref.ref(cls) for cls in classes]
    for cls in classes:
        guard.run(cls)
    del cls, classes
    gc.collect()
    assert sum(ref() is not None for ref in seen) < 300


def test_a_function_that_returns_a_coroutine_is_refused_at_the_call(run, make_guard):
    """It would be decorated and never protected: an error says so, and the coroutine is closed."""
    guard = make_guard()
    wrapped = guarded(guard)(lambda: load_async(1))
    with pytest.raises(TypeError, match=r"returned a coroutine.*async def"):
        wrapped()
    with pytest.raises(TypeError, match=r"returned a coroutine.*run_async"):
        guard.run(load_async, 1)
    assert guard.snapshot().succeeded == 0


def test_wrong_uses_raise_an_error_that_says_how(make_guard):
    """Not a guard, or a wrong timeout: at once, not at the first call."""
    with pytest.raises(TypeError, match=r"write @guarded\(guard\)"):
        guarded(load)
    with pytest.raises(ConfigurationError, match="timeout must be"):
        guarded(make_guard(), timeout=0)


def test_the_timeout_of_a_compartment_is_that_of_each_call(make_guard, clock):
    """Instead of the guard's own."""
    guard = make_guard(timeout=5)

    @guarded(guard, timeout=0.02)
    async def hang():
        await asyncio.sleep(30)

    from guardrails import remaining  # noqa: PLC0415

    @guarded(guard, timeout=0.5)
    def look():
        return remaining()

    with pytest.raises(CallTimeoutError) as late:
        asyncio.run(hang())
    assert late.value.timeout == 0.02
    assert look() == 0.5


def test_stacked_guards_each_settle_once(make_guard):
    """SM20: the same function under two guards, and twice under one."""
    outer, inner = make_guard("outer"), make_guard("inner")

    @guarded(outer)
    @guarded(inner)
    @guarded(inner)
    def failing():
        raise Boom

    with pytest.raises(Boom):
        failing()
    assert (outer.snapshot().failed, inner.snapshot().failed) == (1, 2)


def test_recursion_takes_a_slot_for_each_level(make_guard):
    """And gives each back."""
    guard = make_guard(max_concurrent_calls=4)
    seen = []

    @guarded(guard)
    def descend(depth):
        seen.append(guard.snapshot().in_use)
        if depth:
            descend(depth - 1)

    descend(3)
    assert seen == [1, 2, 3, 4]


def test_a_rule_for_results_decides_the_outcome(make_guard, run):
    """Also under the decorator."""
    from guardrails import BreakerPolicy  # noqa: PLC0415

    guard = make_guard(breaker=BreakerPolicy(is_failure_result=lambda result: result == 500))
    assert run.result(guarded(guard)(run.decorated(lambda: 500))()) == 500
    assert guard.snapshot().failed == 1


def test_guarded_takes_a_bulkhead():
    """Any guard does."""
    bulkhead = Bulkhead("reports", 1)
    assert guarded(bulkhead)(load)(1) == "1 False"
    assert bulkhead.snapshot().admitted == 1
