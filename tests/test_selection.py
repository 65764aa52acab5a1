"""Which cases of a table are run by default; see `support.selection`."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from guardrails.testing.servers import PostgresServer
from support import selection
from support.sql_lab import DRIVERS


class Item:
    """A case of a test, as far as the selection looks."""

    def __init__(self, test, marks=(), fixtures=(), module=None, function=None, **params):
        self.name = f"{test}[{'-'.join(map(str, params.values()))}]" if params else test
        self.nodeid = f"test_it.py::{self.name}"
        self.fixturenames = fixtures
        self.module = module or SimpleNamespace()
        self.function = function
        self._fixtureinfo = SimpleNamespace(name2fixturedefs={})
        self.marks = {mark.name: mark for mark in marks}
        if params:
            self.callspec = SimpleNamespace(params=params)

    def add_marker(self, marker):
        self.marks[marker.name] = marker.mark

    def get_closest_marker(self, name):
        return self.marks.get(name)


def quick(items):
    """Those that are run by default."""
    selection.mark(items)
    return [item for item in items if "slow" not in item.marks]


def driven(test, *marks, **params):
    return [Item(test, marks, lab=driver, **params) for driver in DRIVERS]


def test_test_with_drivers_runs_with_one_for_threads_and_one_for_loops():
    chosen = [item.callspec.params["lab"] for item in quick(driven("test_commit"))]
    assert sorted(DRIVERS[driver][2] for driver in chosen) == [False, True]


def test_order_of_the_cases_does_not_choose_the_drivers():
    one, other = quick(driven("test_commit")), quick(driven("test_commit")[::-1])
    assert {item.name for item in one} == {item.name for item in other}


def test_every_driver_comes_to_its_share_of_tests():
    items = [item for number in range(200) for item in driven(f"test_number_{number}")]
    chosen = [item.callspec.params["lab"] for item in quick(items)]
    for driver, (_, _, on_loop) in DRIVERS.items():
        rivals = sum(kind == on_loop for _, _, kind in DRIVERS.values())
        assert 0.6 * 200 / rivals < chosen.count(driver) < 1.5 * 200 / rivals


def test_drivers_take_turns_among_the_other_parameters():
    items = [item for number in range(40) for item in driven("test_commit", number=number)]
    chosen = quick(items)
    assert len(chosen) == 80
    assert {item.callspec.params["lab"] for item in chosen} == set(DRIVERS)


def test_every_driver_runs_where_a_test_says_so():
    assert len(quick(driven("test_commit", pytest.mark.every_driver.mark))) == len(DRIVERS)


def test_sampled_test_runs_with_each_value_of_each_parameter():
    axes = {"letter": "abcd", "digit": range(3), "lab": DRIVERS}
    items = [
        Item("test_it", [pytest.mark.sampled.mark], **dict(zip(axes, values, strict=True)))
        for values in itertools.product(*axes.values())
    ]
    chosen = quick(items)
    assert len(chosen) < 2 * len(DRIVERS)
    for name, values in axes.items():
        assert {item.callspec.params[name] for item in chosen} == set(values)


@pytest.mark.parametrize("most", [1, 2, 9])
def test_sampled_test_runs_with_as_many_cases_as_it_says(most):
    items = [Item("test_it", [pytest.mark.sampled(most).mark], number=number) for number in range(20)]
    assert len(quick(items)) == most


def starts_one():
    return PostgresServer.start()


def by_name():
    with PostgresServer.start():
        pass


def by_helper():
    with starts_one():
        pass


def not_at_all():
    pass


def test_test_that_needs_a_server_is_marked():
    module = SimpleNamespace(starts_one=starts_one, PostgresServer=PostgresServer)
    functions = [by_name, by_helper, not_at_all]
    items = [Item(function.__name__, module=module, function=function) for function in functions]
    items.append(Item("by_fixture", fixtures=("tmp_path", "valkey")))
    assert quick(items)
    assert ["server" in item.marks for item in items] == [True, True, False, True]


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("long", [0, 1, 5, 20])
def test_long_tests_are_at_the_heads_of_the_shares(workers, long):
    items = [Item(f"test_{number}") for number in range(20)]
    for item in items[20 - long :]:
        item.add_marker(pytest.mark.first)
    dealt = list(items)
    selection.deal(dealt, workers)
    assert sorted(item.name for item in dealt) == sorted(item.name for item in items)
    shares, left = [], dealt
    for worker in range(workers):
        size = len(left) // (workers - worker)
        shares.append(left[:size])
        left = left[size:]
    counts = [sum("first" in item.marks for item in share) for share in shares]
    assert max(counts) - min(counts) <= 1
    for share, count in zip(shares, counts, strict=True):
        assert all("first" in item.marks for item in share[:count])


@pytest.mark.parametrize("workers", [1, 3, 6])
def test_each_worker_begins_to_collect_elsewhere_and_collects_everything(tmp_path, workers):
    for path in ("a/test_1", "b/c/test_2", "b/c/test_3", "b/test_4", "d/test_5", "test_6", "e/helper"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{path}.py").touch()
    lists = [selection.folders(tmp_path, number / workers) for number in range(workers)]
    for each in lists:
        assert sorted(each) == [str(tmp_path / name) for name in ("a", "b", "d", "test_6.py")]
    begins = [each[0] for each in lists]
    assert len(set(begins)) == min(workers, 4)
    assert begins == sorted(begins)
