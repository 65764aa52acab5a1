"""The size of a pool from the environment and from the server's limit."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine

from guardrails import ConfigurationError
from guardrails.integrations.sqlalchemy import PoolSettings


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ("SIZE", "TIMEOUT", "RECYCLE", "PRE_PING"):
        monkeypatch.delenv(f"DB_POOL_{name}", raising=False)
    for name in ("DB_MAX_OVERFLOW", "DB_MAX_CONNECTIONS", "WEB_CONCURRENCY"):
        monkeypatch.delenv(name, raising=False)


def read(monkeypatch, *, prefix="DB", **variables):
    for name, value in variables.items():
        monkeypatch.setenv(f"{prefix}_{name}", value)
    return PoolSettings.from_env(prefix)


def test_all_variables_are_read(monkeypatch):
    settings = read(
        monkeypatch,
        POOL_SIZE="7",
        MAX_OVERFLOW="3",
        POOL_TIMEOUT="2.5",
        POOL_RECYCLE="1800",
        POOL_PRE_PING="true",
    )
    assert settings.options() == {
        "pool_size": 7,
        "max_overflow": 3,
        "pool_timeout": 2.5,
        "pool_recycle": 1800,
        "pool_pre_ping": True,
    }
    engine = create_engine("postgresql+psycopg://db/shop", **settings.options())
    assert (engine.pool.size(), engine.pool._pre_ping) == (7, True)


def test_missing_and_empty_variables_keep_the_defaults(monkeypatch):
    expected = PoolSettings(pool_size=5)
    assert PoolSettings.from_env() == expected
    assert read(monkeypatch, POOL_SIZE="", POOL_PRE_PING="", POOL_RECYCLE="-1") == expected
    assert PoolSettings.from_env("REPORTS") == expected


def test_prefix_names_the_variables(monkeypatch):
    assert read(monkeypatch, prefix="REPORTS", POOL_SIZE="2").pool_size == 2
    assert PoolSettings.from_env().pool_size == 5


@pytest.mark.parametrize(
    ("text", "flag"), [("1", True), ("Yes", True), ("on", True), ("0", False), ("FALSE", False)]
)
def test_flag_has_the_usual_words(monkeypatch, text, flag):
    assert read(monkeypatch, POOL_PRE_PING=text).pool_pre_ping is flag


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("POOL_SIZE", "many", "DB_POOL_SIZE must be a whole number from 1 to .*, got 'many'"),
        ("POOL_SIZE", "0", "DB_POOL_SIZE must be .*, got 0"),
        ("POOL_SIZE", "2.0", "DB_POOL_SIZE must be .*, got 2.0"),
        ("POOL_SIZE", "none", "DB_POOL_SIZE must be .*, got None"),
        ("MAX_OVERFLOW", "-1", "DB_MAX_OVERFLOW must be a whole number from 0 .*, got -1"),
        ("POOL_TIMEOUT", "inf", "DB_POOL_TIMEOUT must be .*, got inf"),
        ("POOL_RECYCLE", "0", "DB_POOL_RECYCLE must be .*, got 0"),
        ("POOL_PRE_PING", "maybe", "DB_POOL_PRE_PING must be true or false, got 'maybe'"),
        ("MAX_CONNECTIONS", "0", "DB_MAX_CONNECTIONS must be .*, got 0"),
        ("POOL_SIZE", "postgresql://app:secret@db/x", "DB_POOL_SIZE must be .*, got a URL"),
    ],
)
def test_wrong_variable_is_refused_by_its_name(monkeypatch, variable, value, words):
    with pytest.raises(ConfigurationError, match=f"PoolSettings.from_env: {words}"):
        read(monkeypatch, **{variable: value})


def test_all_wrong_variables_are_named_at_once(monkeypatch):
    with pytest.raises(ConfigurationError, match=r"DB_POOL_SIZE .*; DB_MAX_OVERFLOW .*; DB_POOL_PRE_PING"):
        read(monkeypatch, POOL_SIZE="x", MAX_OVERFLOW="y", POOL_PRE_PING="z")
    with pytest.raises(ConfigurationError, match="prefix must be a text, got None"):
        PoolSettings.from_env(None)


def test_servers_limit_is_shared_by_the_workers(monkeypatch):
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    assert read(monkeypatch, MAX_CONNECTIONS="100").pool_size == 20
    assert PoolSettings.from_env(workers=2).pool_size == 40
    assert read(monkeypatch, MAX_OVERFLOW="5").pool_size == 15
    assert read(monkeypatch, POOL_SIZE="10").pool_size == 10
    with pytest.raises(ConfigurationError, match=r"DB_POOL_SIZE \+ DB_MAX_OVERFLOW must be .* to 20, got 21"):
        read(monkeypatch, POOL_SIZE="16")


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ({"n": 4, "max_connections": 100}, 20),
        ({"n": 4, "max_connections": 100, "headroom": 0}, 25),
        ({"n": 4, "max_connections": 100, "replicas": 3}, 6),
        ({"n": 4, "max_connections": 100, "replicas": 2, "engines": 2}, 5),
        ({"n": 80, "max_connections": 100}, 1),
        ({"n": 1, "max_connections": 10, "headroom": 0.7}, 3),
    ],
)
def test_each_worker_gets_an_equal_share(arguments, size):
    n = arguments.pop("n")
    assert PoolSettings.for_workers(n, **arguments) == PoolSettings(pool_size=size)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n": 0}, "n must be a whole number from 1 .*, got 0"),
        ({"headroom": 20}, "headroom must be a fraction from 0 to below 1, got 20"),
        ({"headroom": True}, "headroom must be .*, got True"),
        ({"replicas": 0, "engines": -1}, "replicas must be .*; engines must be"),
        ({"n": 81}, "81 pools share 80 of 100 connections, less than one for each: run fewer processes"),
    ],
)
def test_share_that_cannot_be_is_refused(arguments, words):
    settings = {"n": 1, "max_connections": 100} | arguments
    with pytest.raises(ConfigurationError, match=words):
        PoolSettings.for_workers(settings.pop("n"), **settings)


def test_preping_must_be_a_flag():
    with pytest.raises(ConfigurationError, match="pool_pre_ping must be True or False, got 1"):
        PoolSettings(pool_size=1, pool_pre_ping=1)
