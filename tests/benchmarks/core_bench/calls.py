"""One guarded call against the bare one: each end, flavour and form. Knows loops and contenders."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle, product

from core_bench import loops
from core_bench.contender import Contender
from core_bench.timing import BARE, Loop

FLAVOURS = ("sync", "async")
ENDS = ("closed", "mixed", "raising", "rejected")
FORMS = ("decorator", "with", "run")

_TRIES = 1000

_mishaps = cycle([True, *[False] * 99])


class DependencyError(Exception):
    """What the dependency raises."""


def answers(number):
    """A dependency that answers."""
    return number


def fails(_number):
    """A dependency that fails."""
    raise DependencyError


def fails_at_times(number):
    """A dependency that fails once in a hundred calls."""
    if next(_mishaps):
        raise DependencyError
    return number


async def answers_async(number):
    """The same on an event loop."""
    return number


async def fails_async(_number):
    """The same on an event loop."""
    raise DependencyError


async def fails_at_times_async(number):
    """The same on an event loop."""
    if next(_mishaps):
        raise DependencyError
    return number


TARGETS = {
    "closed": {"sync": answers, "async": answers_async},
    "mixed": {"sync": fails_at_times, "async": fails_at_times_async},
    "raising": {"sync": fails, "async": fails_async},
    "rejected": {"sync": fails, "async": fails_async},
}
"""What is called behind the guard. A call that gets through an open circuit raises, and ends the run."""

BARES = TARGETS | {"rejected": TARGETS["closed"]}
"""What it is compared with; a refusal with the answer that the caller wanted."""


@dataclass(frozen=True, slots=True)
class Case:
    """One question: a call of this flavour, written in this form, that ends so."""

    flavour: str
    end: str
    form: str

    @property
    def name(self) -> str:
        """How ``--only`` finds it."""
        return f"calls/{self.flavour}/{self.end}/{self.form}"


CASES = [Case(flavour, end, form) for flavour, end, form in product(FLAVOURS, ENDS, FORMS)]


def loops_of(case: Case, contenders: list[Contender], runner) -> dict[str, Loop]:
    """The bare call, and every contender that knows this form. Those that should refuse do so already."""
    bare = BARES[case.end][case.flavour]
    found = {BARE: _call_loop(case.flavour, runner, bare, DependencyError)}
    for contender in contenders:
        if case.end == "rejected" and contender.refusal is None:
            continue
        ways = contender.ways(contender.make("closed" if case.end == "mixed" else case.end))
        if (case.flavour, case.form) in ways:
            found[contender.name] = _loop(case, ways[case.flavour, case.form], contender, runner)
    return found


def _loop(case: Case, way, contender: Contender, runner) -> Loop:
    target = TARGETS[case.end][case.flavour]
    caught = contender.refusal_class() if case.end == "rejected" else DependencyError
    if case.form == "decorator":
        loop = _call_loop(case.flavour, runner, way(target), caught)
    elif case.flavour == "sync":
        loop = (loops.with_loop if case.form == "with" else loops.run_loop)(way, target, caught)
    else:
        make = loops.async_with_loop if case.form == "with" else loops.async_run_loop
        loop = make(runner, way, target, caught)
    if case.end == "rejected":
        fail_until_refused(loop)
    return loop


def _call_loop(flavour: str, runner, fn, caught) -> Loop:
    if flavour == "sync":
        return loops.call_loop(fn, caught)
    return loops.async_call_loop(runner, fn, caught)


def fail_until_refused(loop: Loop) -> None:
    """Opens a circuit the way life does; a bulkhead that is full refuses the first call."""
    for _ in range(_TRIES):
        try:
            loop(1)
        except DependencyError as error:
            error.__traceback__ = None  # circuitbreaker's monitor keeps its last one for ever, frames and all
            continue
        return
    raise RuntimeError(f"nothing was refused in {_TRIES} failing calls")
