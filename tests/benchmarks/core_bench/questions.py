"""All that is asked, by name, and how long each question may take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from core_bench import calls, crowds, memory, windows
from core_bench.contender import Contender
from core_bench.tables import Table
from core_bench.timing import Effort, compare


@dataclass(frozen=True, slots=True)
class Scale:
    """How thoroughly to look.

    Attributes:
        calls: For one thread or one task.
        crowds: For several threads; a slice must be longer than the interpreter's switch interval of 5 ms.
        sizes: Of count windows; they are filled first.
        seconds: Of time windows.
        repetitions: Of the eight calls of 50 ms.
        instances: To weigh.
        calls_each: What each of those is called.
        rejections: How many calls to refuse.
        convoy: How many calls to make in a crowd.
    """

    calls: Effort
    crowds: Effort
    sizes: tuple[int, ...]
    seconds: tuple[int, ...]
    repetitions: int
    instances: int
    calls_each: int
    rejections: int
    convoy: int


FULL = Scale(
    calls=Effort(repetitions=41, slice_ns=4_000_000, warm_ns=40_000_000),
    crowds=Effort(repetitions=15, slice_ns=40_000_000, warm_ns=80_000_000),
    sizes=(10, 100, 10_000, 1_000_000),
    seconds=(10, 100, 10_000),
    repetitions=5,
    instances=50,
    calls_each=1000,
    rejections=1_000_000,
    convoy=200_000,
)
QUICK = Scale(
    calls=Effort(repetitions=7, slice_ns=500_000, warm_ns=5_000_000),
    crowds=Effort(repetitions=3, slice_ns=10_000_000, warm_ns=10_000_000),
    sizes=(10, 100, 1000),
    seconds=(10, 1000),
    repetitions=1,
    instances=10,
    calls_each=100,
    rejections=2000,
    convoy=20_000,
)

Question = Callable[[], Table]


def questions(scale: Scale, contenders: list[Contender], runner) -> Iterator[tuple[str, Question]]:
    """Names and what to call for the answer."""
    for case in calls.CASES:
        yield case.name, partial(_call, case, scale, contenders, runner)
    for threads in crowds.THREADS:
        name = f"threads/{threads}"
        yield name, partial(_crowd, name, crowds.busy, threads, scale, contenders)
    for threads in crowds.SLEEPERS:
        name = f"sleeping 1 ms/{threads}"
        yield name, partial(_crowd, name, crowds.sleeping, threads, scale, contenders)
    grids = {
        "parallel/8 threads x 50 ms": ("ms", partial(crowds.parallel, contenders, scale.repetitions)),
        "threads/convoy": ("ns", partial(crowds.convoys, contenders, scale.repetitions, scale.convoy)),
        "windows/calls": ("ns", partial(windows.by_count, contenders, scale.calls, scale.sizes)),
        "windows/seconds": ("ns", partial(windows.by_time, contenders, scale.calls, scale.seconds)),
        "windows/after a pause": ("ns", partial(windows.after_pauses, contenders, scale.calls)),
        "memory/weight": (
            "bytes",
            partial(memory.weights, contenders, scale.instances, scale.calls_each),
        ),
        "memory/rejections": ("count", partial(memory.rejections, contenders, scale.rejections)),
    }
    for name, (unit, ask) in grids.items():
        yield name, partial(_grid, name, unit, ask)


def _call(case, scale, contenders, runner) -> Table:
    return Table.of_costs(case.name, compare(calls.loops_of(case, contenders, runner), scale.calls))


def _crowd(name, ask, threads, scale, contenders) -> Table:
    return Table.of_costs(name, ask(contenders, scale.crowds, threads))


def _grid(name, unit, ask) -> Table:
    return Table.of(name, unit, ask())
