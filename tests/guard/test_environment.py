"""Settings of guards from environment variables."""

from __future__ import annotations

import logging

import pytest
from sqlalchemy import QueuePool, create_engine

from guardrails import BreakerPolicy, Bulkhead, ConfigurationError, Guard, protect
from guardrails._guard import environment


@pytest.fixture(autouse=True)
def no_users(monkeypatch):
    """Each test begins with no guard that uses a variable."""
    monkeypatch.setattr(environment, "_users", {})
    monkeypatch.setattr(environment, "_warned", set())
    monkeypatch.delenv("GUARDRAILS_MODE", raising=False)


def named(name="orders-db", **settings):
    return Guard(name, max_concurrent_calls=3, **settings)


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("orders-db", "GUARDRAILS_ORDERS_DB_"),
        ("Orders.DB 2", "GUARDRAILS_ORDERS_DB_2_"),
        ("bücher", "GUARDRAILS_B_CHER_"),
    ],
)
def test_prefix_is_the_name_in_capitals(name, prefix):
    assert environment.prefix_of(name) == prefix


def test_variable_fills_what_the_code_left_at_its_default(monkeypatch, caplog):
    monkeypatch.setenv("GUARDRAILS_ORDERS_DB_TIMEOUT", "1.5")
    monkeypatch.setenv("GUARDRAILS_ORDERS_DB_MAX_WAIT_DURATION", "0")
    with caplog.at_level(logging.INFO, "guardrails"):
        guard = named()
    assert guard.timeout == 1.5
    assert guard._gate.max_wait == 0
    assert (
        "guard 'orders-db': timeout is 1.5 by the environment variable GUARDRAILS_ORDERS_DB_TIMEOUT"
        in caplog.text
    )


def test_value_in_the_code_wins(monkeypatch, caplog):
    monkeypatch.setenv("GUARDRAILS_ORDERS_DB_TIMEOUT", "1.5")
    with caplog.at_level(logging.INFO, "guardrails"):
        assert named(timeout=2).timeout == 2
        assert named(timeout=None).timeout is None
    assert "environment" not in caplog.text


def test_none_switches_a_setting_off_and_an_empty_variable_is_none(monkeypatch):
    monkeypatch.setenv("GUARDRAILS_ORDERS_DB_TIMEOUT", "none")
    assert named().timeout is None
    monkeypatch.setenv("GUARDRAILS_ORDERS_DB_TIMEOUT", "")
    assert named().timeout == 5.0


def test_fields_of_the_policy_are_filled_one_by_one(monkeypatch):
    monkeypatch.setenv("GUARDRAILS_ORDERS_DB_FAILURE_RATE_THRESHOLD", "0.2")
    monkeypatch.setenv("GUARDRAILS_ORDERS_DB_MINIMUM_NUMBER_OF_CALLS", "40")
    policy = named(breaker=BreakerPolicy(minimum_number_of_calls=20)).call_settings.policy
    assert (policy.failure_rate_threshold, policy.minimum_number_of_calls) == (0.2, 20)
    assert named(breaker=None).call_settings.policy is None


def test_compartments_and_other_guards_are_left_alone(monkeypatch):
    monkeypatch.setenv("GUARDRAILS_ORDERS_DB_TIMEOUT", "1.5")
    monkeypatch.setenv("GUARDRAILS_REPORTS_TIMEOUT", "9")
    guard = named()
    assert guard.compartment("reports").timeout == 1.5, "it has its guard's"
    assert named("orders").timeout == 5.0
    assert Bulkhead("orders-db", 2).timeout is None


def test_pools_settings_are_filled(monkeypatch):
    for setting, value in {"MINIMUM_IDLE": 2, "MAX_LIFETIME": 1800, "MAX_CONCURRENT_CALLS": 3}.items():
        monkeypatch.setenv(f"GUARDRAILS_SHOP_{setting}", str(value))
    engine = create_engine("postgresql+psycopg://db/shop")
    guard = protect(engine, max_lifetime=600)
    settings = guard._attachment.upkeep.life.settings
    assert (settings.minimum_idle, settings.max_lifetime) == (2, 600)
    assert guard.snapshot().max_concurrent_calls == 3
    guard.detach()


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("TIMEOUT", "fast", "GUARDRAILS_DB_TIMEOUT must be a number of seconds above 0 .*, got 'fast'"),
        ("TIMEOUT", "-1", "GUARDRAILS_DB_TIMEOUT must be .*, got -1"),
        ("TIMEOUT", "nan", "GUARDRAILS_DB_TIMEOUT must be .*, got nan"),
        ("TIMEOUT", "True", "GUARDRAILS_DB_TIMEOUT must be .*, got 'True'"),
        ("MAX_WAITING", "1.5", "GUARDRAILS_DB_MAX_WAITING must be a whole number from 0 .*, got 1.5"),
        (
            "FAILURE_RATE_THRESHOLD",
            "50",
            "GUARDRAILS_DB_FAILURE_RATE_THRESHOLD must be a fraction .*write 0.5",
        ),
        ("TIMEOUT", "postgresql://app:secret@db/x", "GUARDRAILS_DB_TIMEOUT must be .*, got a URL"),
        ("TIMOUT", "3", "no setting is GUARDRAILS_DB_TIMOUT; did you mean GUARDRAILS_DB_TIMEOUT"),
        ("MOD", "shadow", "no setting is GUARDRAILS_DB_MOD; did you mean GUARDRAILS_DB_MODE"),
        ("MODE", "Shadow", "GUARDRAILS_DB_MODE must be 'enforce' or 'shadow' or 'off', got 'Shadow'"),
        ("MODE", "none", "GUARDRAILS_DB_MODE must be 'enforce' or 'shadow' or 'off', got None"),
        (
            "COMPARTMENTS",
            "none",
            "no setting is GUARDRAILS_DB_COMPARTMENTS; after GUARDRAILS_DB_ may come .*, MODE, TIMEOUT, ",
        ),
    ],
)
def test_wrong_variable_is_refused_by_its_name(monkeypatch, setting, value, words):
    monkeypatch.setenv(f"GUARDRAILS_DB_{setting}", value)
    with pytest.raises(ConfigurationError, match=f"guard 'db': environment: {words}"):
        named("db")


def test_variable_of_a_guard_with_a_longer_name_is_not_misspelt(monkeypatch):
    monkeypatch.setenv("GUARDRAILS_DB_EU_TIMEOUT", "3")
    assert named("db").timeout == 5.0
    assert named("db-eu").timeout == 3


@pytest.mark.parametrize("word", ["SERVICE_HOST", "SERVICE_PORT_SQL", "PORT", "PORT_5432_TCP_ADDR"])
def test_variables_of_a_kubernetes_service_are_left_alone(monkeypatch, word):
    monkeypatch.setenv(f"GUARDRAILS_DB_{word}", "tcp://10.0.0.1:5432")
    assert named("db").timeout == 5.0


@pytest.mark.parametrize(
    ("own", "of_all", "code", "mode"),
    [
        ("shadow", None, None, "shadow"),
        ("off", None, None, "off"),
        ("enforce", None, None, "enforce"),
        ("shadow", None, "enforce", "shadow"),
        ("enforce", None, "shadow", "shadow"),
        ("enforce", "shadow", None, "shadow"),
        ("enforce", "shadow", "enforce", "enforce"),
        ("shadow", "enforce", None, "shadow"),
        ("off", "shadow", None, "off"),
        ("shadow", "off", None, "off"),
        ("", "shadow", None, "shadow"),
    ],
)
def test_a_guards_own_mode_counts_if_it_is_less_intrusive(monkeypatch, own, of_all, code, mode):
    monkeypatch.setenv("GUARDRAILS_ORDERS_DB_MODE", own)
    if of_all is not None:
        monkeypatch.setenv("GUARDRAILS_MODE", of_all)
    guard = named(mode=code)
    assert guard.mode == guard.compartment("part").mode == mode
    assert named("another", mode=code).mode == ("off" if of_all == "off" else code or of_all or "enforce"), (
        "it has a variable of its own"
    )


def test_a_guard_of_an_engine_has_a_mode_of_its_own(monkeypatch):
    monkeypatch.setenv("GUARDRAILS_SHOP_MODE", "shadow")
    engine = create_engine("sqlite://", poolclass=QueuePool)
    guard = protect(engine, name="shop")
    assert guard.mode == "shadow"
    guard.detach()


def test_what_came_of_a_guards_own_mode_is_logged(monkeypatch, caplog):
    monkeypatch.setenv("GUARDRAILS_ORDERS_DB_MODE", "shadow")
    with caplog.at_level(logging.INFO, "guardrails"):
        named()
        named(mode="off")
    assert [each.getMessage() for each in caplog.records] == [
        "guard 'orders-db': mode is shadow by the environment variable GUARDRAILS_ORDERS_DB_MODE",
        "guard 'orders-db': its mode is off; GUARDRAILS_ORDERS_DB_MODE=shadow has no effect",
    ]
    assert caplog.records[1].levelno == logging.WARNING


def test_a_variable_without_effect_is_logged_once(monkeypatch, caplog):
    for name in (
        "TIMEOUT",
        "MOD",
        "MODES",
        "MAX_WAIT_DURATION_IN_OPEN_STATE",
        "EU_TIMEOUT",
        "SUITES",
        "MODE",
    ):
        monkeypatch.setenv(f"GUARDRAILS_{name}", "off")
    named()
    named("second")
    assert [each.getMessage() for each in caplog.records] == [
        f"the environment variable GUARDRAILS_{name} has no effect; did you mean GUARDRAILS_{meant}?"
        for name, meant in (
            ("MAX_WAIT_DURATION_IN_OPEN_STATE", "ORDERS_DB_MAX_WAIT_DURATION_IN_OPEN_STATE"),
            ("MOD", "MODE"),
            ("MODES", "MODE"),
            ("TIMEOUT", "ORDERS_DB_TIMEOUT"),
        )
    ]


def test_two_guards_of_one_prefix_are_refused(monkeypatch):
    named("orders-db")
    named("orders_db")  # without a variable there is nothing to confuse
    monkeypatch.setenv("GUARDRAILS_ORDERS_DB_TIMEOUT", "3")
    named("orders-db")
    named("orders-db")
    with pytest.raises(
        ConfigurationError, match=r"GUARDRAILS_ORDERS_DB_.* belong to the guard 'orders-db' as"
    ):
        named("orders_db")


def test_a_number_of_slots_that_is_too_large_is_named_by_its_variable_and_by_what_the_pool_has(monkeypatch):
    engine = create_engine("sqlite://", poolclass=QueuePool, pool_size=3, max_overflow=2)
    sizes = r"got 50 \(the pool: pool_size 3 \+ max_overflow 2\)"
    with pytest.raises(
        ConfigurationError, match=rf"max_concurrent_calls must be .* from 1 to 5, or None, {sizes}"
    ):
        protect(engine, name="shop", max_concurrent_calls=50)
    monkeypatch.setenv("GUARDRAILS_SHOP_MAX_CONCURRENT_CALLS", "50")
    with pytest.raises(
        ConfigurationError, match=rf"GUARDRAILS_SHOP_MAX_CONCURRENT_CALLS must be .*, {sizes}"
    ):
        protect(engine, name="shop")
    with pytest.raises(ConfigurationError, match=r"got 9 \(the slots of 'orders-db'\)"):
        named().compartment("part", max_concurrent_calls=9)


def test_a_second_guard_of_an_engine_is_told_what_to_do():
    engine = create_engine("sqlite://", poolclass=QueuePool)
    guard = protect(engine)
    with pytest.raises(
        ConfigurationError, match=r"by <Guard .*; use that guard, or call its detach\(\) first"
    ):
        protect(engine)
    guard.detach()


def test_variables_of_guards_that_were_not_made_are_listed(monkeypatch):
    """A guard's name may be misspelt, or the guard is one of another process: no error, and no line."""
    for key, text in {
        "GUARDRAILS_ORDERS_DB_MODE": "shadow",
        "GUARDRAILS_ORDERS_DB_TIMEOUT": "2",
        "GUARDRAILS_ORDER_DB_MODE": "off",
        "GUARDRAILS_ORDERS_MODE": "off",
        "GUARDRAILS_TIMEOUT": "2",
        "GUARDRAILS_EMPTY_MODE": "",
        "GUARDRAILS_MYSQLD": "mysqld",
        "GUARDRAILS_MODE": "shadow",
    }.items():
        monkeypatch.setenv(key, text)
    others = ["GUARDRAILS_ORDERS_MODE", "GUARDRAILS_ORDER_DB_MODE", "GUARDRAILS_TIMEOUT"]
    own = ["GUARDRAILS_ORDERS_DB_MODE", "GUARDRAILS_ORDERS_DB_TIMEOUT"]
    assert environment.unused_variables() == sorted(own + others)
    named()
    assert environment.unused_variables() == sorted(others)
