"""The rules for the life of a pool's connections, with the time as an argument."""

from __future__ import annotations

import math

import pytest

from guardrails import ConfigurationError
from guardrails._pool.life import RENEWAL, Age, LifeSettings, PoolLife

NOW = 1000.0


def aged(*, opened=NOW, used=NOW, pinged=NOW, share=0.0, peer=None):
    age = Age(opened, share, peer=peer)
    age.used, age.pinged = used, pinged
    return age


def life(**settings):
    return PoolLife(LifeSettings(**settings))


def idle(*used):
    """Connections by their number, last used at these times."""
    return [(number, aged(used=at, pinged=at)) for number, at in enumerate(used)]


@pytest.mark.parametrize(
    ("settings", "used", "above", "closed"),
    [
        ({}, [0, 0, 0], 0, []),
        ({"idle_timeout": 10}, [NOW - 9.9, NOW - 10, NOW - 11], 0, [2, 1]),
        ({"idle_timeout": 10, "minimum_idle": 2}, [NOW - 30, NOW - 20, NOW - 40], 0, [2]),
        ({"idle_timeout": 10, "minimum_idle": 3}, [NOW - 30, NOW - 20, NOW - 40], 0, []),
        ({}, [NOW - 1, NOW - 3, NOW - 2], 2, [1, 2]),
        ({"minimum_idle": 3}, [NOW - 1, NOW - 3, NOW - 2], 1, [1]),
        ({"idle_timeout": 10}, [NOW - 10, NOW], 2, [0, 1]),
        ({}, [NOW], 5, [0]),
    ],
)
def test_longest_idle_connections_are_closed_first(settings, used, above, closed):
    assert life(**settings).to_close(NOW, idle(*used), above) == closed


def test_life_is_shortened_by_up_to_a_fortieth():
    """Connections that were opened together do not end together."""
    rules = life(max_lifetime=100)
    assert rules.end_of(aged(share=0.0)) == NOW + 100
    assert rules.end_of(aged(share=1.0)) == pytest.approx(NOW + 97.5)
    assert life().end_of(aged()) == math.inf


def test_a_closed_connection_counts_towards_the_excess():
    """One connection is too old and two are in excess: two are closed, not three."""
    connections = [(0, aged(opened=0)), (1, aged(used=NOW - 1)), (2, aged())]
    assert life(max_lifetime=100).to_close(NOW, connections, 2) == [0, 1]


def test_renewal_ends_the_older_connections_within_its_spread():
    rules = life()
    old = [aged(opened=NOW - 1, share=share) for share in (0.0, 0.25, 0.99)]
    assert rules.renew(NOW)
    assert [rules.end_of(age) for age in old] == [NOW + RENEWAL * share for share in (0.0, 0.25, 0.99)]
    assert rules.end_of(aged(opened=NOW, share=0.0)) == math.inf
    assert rules.acts


def test_second_renewal_waits_for_the_first():
    """While a server stays read-only, each failed write asks for a renewal."""
    rules = life()
    assert rules.renew(NOW)
    assert not rules.renew(NOW + RENEWAL / 2)
    assert rules.renew(NOW + RENEWAL)


def test_renewal_of_an_address_spares_the_others():
    rules = life()
    rules.renew(NOW, frozenset({"10.0.0.1"}))
    old, new, unknown = (aged(opened=NOW - 1, peer=peer) for peer in ("10.0.0.1", "10.0.0.2", None))
    assert [rules.end_of(age) for age in (old, new, unknown)] == [NOW, math.inf, math.inf]
    assert rules.renew(NOW + 0.1), "a renewal of all is wider"
    assert rules.end_of(new) == NOW + 0.1


def test_connections_are_pinged_after_their_last_use_or_ping():
    connections = [
        (0, aged(used=NOW - 9, pinged=NOW - 30)),
        (1, aged(used=NOW - 30, pinged=NOW - 9)),
        (2, aged(used=NOW - 10, pinged=NOW - 20)),
        (3, aged(used=NOW - 50, pinged=NOW - 50)),
    ]
    assert life(keepalive=10).to_ping(NOW, connections) == [3, 2]
    assert life().to_ping(NOW, connections) == []


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [
        ({}, 30.0),
        ({"minimum_idle": 1}, 1.0),
        ({"max_lifetime": 5}, 5.0),
        ({"keepalive": 3, "max_lifetime": 5}, 3.0),
        ({"idle_timeout": 2}, 2.0),
        ({"idle_timeout": 2, "minimum_idle": 1, "keepalive": 0.5}, 0.5),
        ({"idle_timeout": 0.001}, 0.05),
    ],
)
def test_next_look_is_at_the_first_due_time(settings, seconds):
    """Also where no connection is idle yet: one may be from this moment on."""
    assert life(**settings).next_check(NOW, []) == seconds
    assert life(**settings).next_check(NOW, idle(NOW)) == seconds


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"minimum_idle": -1}, "minimum_idle must be a whole number from 0 to 5, got -1"),
        ({"minimum_idle": 6}, "minimum_idle must be a whole number from 0 to 5, got 6"),
        ({"minimum_idle": True}, "minimum_idle must be a whole number from 0 to 5, got True"),
        ({"idle_timeout": 0}, "idle_timeout must be a number of seconds above 0 .*, got 0"),
        ({"max_lifetime": "1h"}, "max_lifetime must be a number of seconds .*, got '1h'"),
        ({"keepalive": math.nan, "idle_timeout": -1}, "idle_timeout .*; keepalive .* got nan"),
        ({"keepalive": 30, "max_lifetime": 30}, "keepalive must be below max_lifetime, which is 30, got 30"),
    ],
)
def test_wrong_setting_is_refused_with_field_value_and_range(options, words):
    with pytest.raises(ConfigurationError, match=f"guard 'db': {words}"):
        LifeSettings.taken_from(options, "db", 5, "a QueuePool")


def test_pool_without_idle_connections_is_refused_by_its_kind():
    with pytest.raises(ConfigurationError, match="guard 'db': a NullPool keeps no idle connections"):
        LifeSettings.taken_from({"keepalive": 3}, "db", None, "a NullPool")
    assert LifeSettings.taken_from({}, "db", None, "a NullPool") == LifeSettings()


def test_other_options_stay():
    options = {"keepalive": 3, "timeout": 1}
    assert LifeSettings.taken_from(options, "db", 0, "").keepalive == 3
    assert options == {"timeout": 1}


def test_a_look_at_the_end_of_a_renewal_finds_those_that_returned_meanwhile():
    """They were out at the last look, and returned before their own time was over."""
    renewed = life()
    renewed.renew(NOW)
    assert renewed.next_check(NOW + 0.5, []) == RENEWAL - 0.5
    assert renewed.next_check(NOW + RENEWAL, []) == 30.0
