"""Names that lead to another address, by the answers of a resolver."""

from __future__ import annotations

import pytest

from guardrails._pool.addresses import NameWatch, names_in


@pytest.mark.parametrize(
    ("hosts", "names"),
    [
        (["db.internal"], {"db.internal"}),
        (["a.internal,b.internal"], {"a.internal", "b.internal"}),
        ([["a.internal", "10.0.0.1"]], {"a.internal"}),
        (["10.0.0.1", "::1", "fe80::1%eth0", "/var/run/postgresql", "@abstract", "", None, 5], set()),
        (["localhost"], set()),
    ],
)
def test_names_are_told_from_addresses_and_paths(hosts, names):
    assert names_in(hosts) == names


def gone_in(*answers, every=5.0):
    """Plays answers to a watch; returns what is gone after each."""
    watch = NameWatch()
    watch.add(frozenset({"db"}), "1")
    return watch, [
        set(watch.note(number * every, frozenset(answer))) for number, answer in enumerate(answers)
    ]


@pytest.mark.parametrize(
    ("answers", "gone"),
    [
        ([{"1"}, {"1"}, {"1"}], [set(), set(), set()]),
        ([{"1"}, {"2"}, {"2"}, {"2"}], [set(), set(), {"1"}, set()]),
        ([{"2"}, {"2"}], [set(), {"1"}]),
        ([{"1"}, {"2"}, {"1"}, {"2"}], [set(), set(), set(), set()]),
        ([{"1", "2"}, {"2", "3"}, {"2", "3"}], [set(), set(), {"1"}]),
        ([{"1"}, {"2"}, {"2"}, {"1"}, {"1"}], [set(), set(), {"1"}, set(), {"2"}]),
    ],
)
def test_address_is_gone_after_two_answers_without_it(answers, gone):
    assert gone_in(*answers)[1] == gone


def test_name_that_rotates_is_not_watched():
    """A name that leads to one of two addresses in turn would renew the pool for ever."""
    watch, gone = gone_in(*[{"1"}, {"2"}, {"2"}, {"1"}, {"1"}] * 3)
    assert sum(map(len, gone)) <= 4
    assert not watch.names
    watch.add(frozenset({"db"}), "1")
    assert not watch.names


def test_connections_that_reach_a_lost_address_end_the_watch():
    """A user's own address, or a driver that keeps an old answer, would have its pool renewed for ever."""
    watch, gone = gone_in({"2"}, {"2"})
    assert gone[1] == {"1"}
    for _ in range(3):
        assert watch.names
        watch.add(frozenset({"db"}), "1")
    assert not watch.names


def test_move_and_return_is_followed():
    """A fail-over and the way back, a minute apart, three times."""
    watch, gone = gone_in(*[{"1"}, {"1"}, {"2"}, {"2"}] * 3, every=70.0)
    assert [each for each in gone if each] == [{"1"}, {"2"}, {"1"}, {"2"}, {"1"}]
    assert watch.names


def test_missing_address_is_looked_up_again_soon():
    watch, _ = gone_in({"1"}, {"2"})
    assert not watch.is_due(5.4)
    assert watch.is_due(5.5)


def test_failure_makes_a_look_up_due_once_in_half_a_second():
    watch = NameWatch()
    assert not watch.look_up_soon(1.0), "there is no name"
    watch.add(frozenset({"db"}), "1")
    assert watch.is_due(1.0)
    watch._next = 6.0  # a look-up at 1.0
    assert not watch.look_up_soon(1.4)
    assert watch.look_up_soon(1.6)
    assert watch.is_due(1.6)
