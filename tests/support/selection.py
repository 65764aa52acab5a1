"""Which tests need servers, and which cases of a large table run by default; the others are marked ``slow``.

- A test that takes a driver runs with one driver for threads and one for event loops. The pair follows from
  the test's name, so that every driver has its share of the tests, and a test the same pair in every run.
- A test marked ``sampled`` runs with so few of its cases that each value of each parameter has come;
  ``sampled(3)`` runs three of them.
- A test marked ``every_driver`` runs with all.

The cases without a turn are also marked ``long``, since together they take a quarter of an hour. With the
variable GUARDRAILS_SHARE=K/N every N-th of them, from the K-th on, is only ``slow``; N runs, one
for each K, run them all.
"""

from __future__ import annotations

import functools
import inspect
import os
import zlib
from collections import defaultdict

import pytest

from support.sql_lab import DRIVERS

SERVER_FIXTURES = {"postgres", "mariadb", "valkey"}
SERVER_CLASSES = {"PostgresServer", "MariaDBServer", "start_mariadb", "ValkeyServer", "RedisServer"}


def mark(items):
    """Marks what needs a server as ``server``, and the cases that have no turn as ``slow``."""
    tests = defaultdict(list)
    for item in items:
        tests[item.nodeid.partition("[")[0]].append(item)
    for cases in tests.values():
        if _needs_server(cases[0]):
            for item in cases:
                item.add_marker(pytest.mark.server)
    tables = [cases for cases in tests.values() if hasattr(cases[0], "callspec")]
    without_turn = [item for cases in tables for item in _without_turn(cases)]
    first, step = _share(os.environ.get("GUARDRAILS_SHARE"))
    for number, item in enumerate(sorted(without_turn, key=lambda item: item.nodeid)):
        item.add_marker(pytest.mark.slow)
        if step is None or number % step != first:
            item.add_marker(pytest.mark.long)


def _share(given):
    """K and N of the share "K/N", K from 0 to N - 1; no N without a share."""
    if not given:
        return 0, None
    first, step = map(int, given.split("/"))
    if not 0 <= first < step:
        raise pytest.UsageError(f"GUARDRAILS_SHARE must be K/N with 0 <= K < N, got {given!r}")
    return first, step


def _needs_server(item):
    return bool(SERVER_FIXTURES & set(item.fixturenames) or SERVER_CLASSES & _used_names(item))


def _used_names(item):
    """The names that a test, its fixtures and the functions of its module that they call refer to."""
    fixtures = [definitions[-1].func for definitions in item._fixtureinfo.name2fixturedefs.values()]
    functions, names, module = [item.function, *fixtures], set(), vars(item.module)
    while functions:
        new = _names_in(inspect.unwrap(functions.pop())) - names
        names |= new
        functions += [found for name in new if inspect.isfunction(found := module.get(name))]
    return names


@functools.cache
def _names_in(function):
    codes, names = [function.__code__] if inspect.isfunction(function) else [], set()
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [const for const in code.co_consts if inspect.iscode(const)]
    return names


def folders(tests, share):
    """The folders and modules of the tests, beginning after a share of the modules.

    Each process of a run begins elsewhere, so that each compiles a part of the modules for all. If all began
    with the same one, each would compile all of them.
    """
    tops = [tests / path.relative_to(tests).parts[0] for path in sorted(tests.rglob("test_*.py"))]
    found = list(dict.fromkeys(tops))
    start = found.index(tops[int(len(tops) * share)])
    return [str(path) for path in found[start:] + found[:start]]


def deal(items, workers):
    """Puts the tests marked ``first`` at the heads of the shares of the workers, in turns.

    ``--dist=worksteal`` gives each worker one piece of the list; a long test at its end would be waited for.
    """
    first = [item for item in items if item.get_closest_marker("first") is not None]
    rest = [item for item in items if item.get_closest_marker("first") is None]
    dealt, left = [], len(items)
    for worker in range(workers):
        share = left // (workers - worker)
        left -= share
        mine = first[worker::workers]
        room = max(0, share - len(mine))
        dealt += mine + rest[:room]
        rest = rest[room:]
    items[:] = dealt + rest


def _without_turn(cases):
    sampled = cases[0].get_closest_marker("sampled")
    if sampled is not None:
        return set(cases) - set(_sample(cases, *sampled.args))
    if cases[0].get_closest_marker("every_driver") is not None:
        return set()
    return set(_without_the_drivers_turn(cases))


def _sample(cases, most=None):
    """The cases with the most new values, one after the other, until no value is new."""
    left = {item: _values(item) for item in sorted(cases, key=_number)}
    seen = set()
    while left and most != 0:
        best = max(left, key=lambda item: len(left[item] - seen))
        new = left.pop(best)
        if not new - seen and most is None:
            return
        yield best
        seen |= new
        most = most and most - 1


def _without_the_drivers_turn(cases):
    """The cases whose driver has no turn among those for the same kind of caller."""
    drivers = {item: driver for item in cases if (driver := _driver(item)) is not None}
    rivals = defaultdict(set)
    for item, driver in drivers.items():
        rivals[item.nodeid.replace(driver, "*"), DRIVERS[driver][2]].add(driver)
    for item, driver in drivers.items():
        same = item.nodeid.replace(driver, "*")
        kind = sorted(rivals[same, DRIVERS[driver][2]])
        if driver != kind[zlib.crc32(same.rpartition("::")[2].encode()) % len(kind)]:
            yield item


def _driver(item):
    params = item.callspec.params.values()
    return next((param for param in params if isinstance(param, str) and param in DRIVERS), None)


def _values(item):
    return {(name, id(value)) for name, value in item.callspec.params.items()}


def _number(item):
    return zlib.crc32(item.name.encode())
