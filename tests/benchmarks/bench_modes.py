"""What a guarded call costs in shadow and off, as a multiple of what it costs while the guard enforces.

    python tests/benchmarks/bench_modes.py [--rounds N]

The three modes are measured in turn, in one run, by the processor time of the thread. It prints ratios only:
the median of the rounds, with the quarter below and above it.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import logging
import platform
import statistics
from functools import partial

from pairs import timed, timed_async
from sqlalchemy import create_engine, text
from sqlalchemy.pool import QueuePool

from guardrails import Guard, deadline, protect
from guardrails._pool.checkout import Checkout

MODES = ("enforce", "shadow", "off")
STATEMENT = text("select 42")


def plain(mode):
    """A guard with its defaults."""
    return Guard("bench", max_concurrent_calls=15, mode=mode)


def engine(mode):
    """An engine on SQLite in memory with a guard, and one of its connections."""
    made = create_engine("sqlite://", poolclass=QueuePool)
    protect(made, name="bench", mode=mode, compartments="none")
    return made.connect()


def run(guard):
    """A call of a function."""
    guard.run(int)


def block(guard):
    """The same as a block."""
    with guard.call():
        pass


def bounded(guard):
    """The same inside a deadline."""
    with deadline(60):
        guard.run(int)


def checkout(guard):
    """The slots of a pool's checkout."""
    out = Checkout(guard)
    out.take_slots()
    out.release_slots()


def statement(connection):
    """A statement of an open connection."""
    connection.execute(STATEMENT).scalar()


def session(connection):
    """A checkout with one statement, a rollback and the return."""
    with connection.engine.connect() as another:
        another.execute(STATEMENT).scalar()


async def run_async(guard):
    """A call of a coroutine function."""
    await guard.run_async(nothing)


async def nothing():
    """Answers at once."""


CASES = {
    "run": (plain, run, 2000),
    "with": (plain, block, 2000),
    "run inside deadline()": (plain, bounded, 1000),
    "checkout and return": (plain, checkout, 1000),
    "statement (SQLite)": (engine, statement, 300),
    "checkout, statement, return (SQLite)": (engine, session, 100),
    "run_async": (plain, run_async, 2000),
}


def measure(runner, thing, body, turns):
    """Microseconds of processor time for a turn."""
    if inspect.iscoroutinefunction(body):
        return runner.run(timed_async(thing, body, turns))[1]
    return timed(thing, body, turns)[1]


def ratios(runner, case, rounds):
    """The ratios of each round, by mode."""
    make, body, turns = CASES[case]
    things = {mode: make(mode) for mode in MODES}
    once = partial(measure, runner, body=body, turns=turns)
    for thing in things.values():
        once(thing=thing)
    found = {mode: [] for mode in MODES[1:]}
    for number in range(rounds):
        order = MODES if number % 2 else MODES[::-1]
        took = {mode: once(thing=things[mode]) for mode in order}
        for mode, each in found.items():
            each.append(took[mode] / took["enforce"])
    for thing in things.values():
        if hasattr(thing, "close"):
            thing.close()
            thing.engine.dispose()
    return found


def main():
    """Measures all cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=41)
    rounds = parser.parse_args().rounds
    logging.disable(logging.CRITICAL)
    print(
        f"{platform.python_implementation()} {platform.python_version()}, {' '.join(platform.python_build())}"
    )
    with asyncio.Runner() as runner:
        for case in CASES:
            words = []
            for mode, each in ratios(runner, case, rounds).items():
                low, middle, high = statistics.quantiles(each, n=4)
                words.append(f"{mode} {middle:.2f} ({low:.2f} to {high:.2f})")
            print(f"{case:38}" + "   ".join(words), flush=True)


if __name__ == "__main__":
    main()
