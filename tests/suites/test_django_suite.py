"""Django's own tests for its database, bare and guarded: the same outcome, but for what is listed here."""

from __future__ import annotations

import json
import os

import psycopg
import pytest

from guardrails.testing.servers import PostgresServer
from support import upstream
from support.paths import ROOT, SUPPORT

ENGINES = {"bare": "django.db.backends.postgresql", "guarded": "guardrails.integrations.django.postgresql"}

WHOLE = [
    "backends",
    "db_utils",
    "basic",
    "transactions",
    "transaction_hooks",
    "queries",
    "bulk_create",
    "select_for_update",
    "postgres_tests",
    "migrations",
    "schema",
    "cache",
    "test_utils",
]
PINNED = [
    "backends",
    "db_utils",
    "basic",
    "transactions",
    "transaction_hooks",
    "bulk_create",
    "select_for_update",
]
"""What is run by default; GUARDRAILS_SUITES=whole in the environment runs the whole list."""

LABELS = WHOLE if os.environ.get("GUARDRAILS_SUITES") == "whole" else PINNED
SECONDS = 1500 if LABELS is WHOLE else 240

MEANT = {
    "backends.postgresql.tests.Tests.test_connect_pool": (
        "it opens a pool of two behind a guard of four, which is refused: slots without a connection"
    ),
}
"""The differences that are meant, each with its reason."""

POOL = {"pool": {"min_size": 1, "max_size": 20}}


UUID = {
    "uuid-ossp.control": "default_version = '1.1'\n",
    "uuid-ossp--1.1.sql": (
        "create function uuid_generate_v4() returns uuid language sql as 'select gen_random_uuid()';\n"
    ),
}
"""The one extension that Django's tests ask for and the server's wheel is built without."""


def start_server():
    """A server with all that Django's tests ask of it."""
    server = PostgresServer.start()
    folder = server.home / "extension"
    folder.mkdir(mode=0o755)
    for name, text in UUID.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o644)
    with psycopg.connect(server.url(""), autocommit=True) as connection:
        connection.execute(f"alter system set extension_control_path = '$system:{server.home}'")
        connection.execute("select pg_reload_conf()")
    return server


@pytest.fixture(scope="module")
def server():
    """One server for all runs."""
    with start_server() as server:
        yield server


def environment(server, kind, options, outcomes):
    """The settings of one run."""
    databases = {}
    with psycopg.connect(server.url(""), autocommit=True) as connection:
        for alias in ("default", "other"):
            name = f"{kind}_{alias}"
            connection.execute(f"drop database if exists {name} with (force)")
            connection.execute(f"create database {name}")
            guard = {"guard": f"suite_guards.{alias}"} if kind == "guarded" else {}
            databases[alias] = {
                "ENGINE": ENGINES[kind],
                "NAME": name,
                "HOST": "127.0.0.1",
                "PORT": str(server.port),
                "USER": "postgres",
                "OPTIONS": {**options, **guard},
            }
    return {
        "SUITE_DATABASES": json.dumps(databases),
        "SUITE_OUTCOMES": str(outcomes),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(SUPPORT / "django_suite")]),
    }


def tables(server, name):
    """The tables of a database."""
    with psycopg.connect(server.url("", name)) as connection:
        return connection.execute("select tablename from pg_tables where schemaname = 'public'").fetchall()


@pytest.mark.slow
@pytest.mark.first
@pytest.mark.timeout(SECONDS + 360)
@pytest.mark.parametrize("options", [{}, POOL], ids=["no pool", "pool"])
def test_djangos_own_tests_end_as_they_do_without_a_guard(server, options, tmp_path, tmp_path_factory):
    """Each test by its name; the database that the settings name is not touched."""
    source = upstream.sdist("django", tmp_path_factory.getbasetemp())
    words = [
        "runtests.py",
        "--settings=suite_settings",
        "--noinput",
        "--parallel=1",
        "--verbosity=0",
        *LABELS,
    ]
    runs, outcomes = {}, {}
    for kind in ENGINES:
        told = environment(server, kind, options, tmp_path / f"{kind}.jsonl")
        runs[kind] = upstream.start(words, source / "tests", told, tmp_path / f"{kind}.log")
    try:
        for kind, run in runs.items():
            outcomes[kind] = upstream.read_lines(tmp_path / f"{kind}.jsonl", run.wait(SECONDS))
    finally:
        for run in runs.values():
            run.stop()
    assert len(outcomes["bare"]) > 400
    assert upstream.differences(outcomes["bare"], outcomes["guarded"], MEANT) == []
    for alias in ("default", "other"):
        assert tables(server, f"guarded_{alias}") == []
