"""What a fleet reports against what its server counts: ``guardrails fleet``, ``diagnose`` and ``doctor``."""

from __future__ import annotations

import contextlib
import json
from types import SimpleNamespace

import psycopg
import pymysql
import pytest
from click.testing import CliRunner
from sqlalchemy import create_engine, make_url, text

from guardrails import Guard, protect
from guardrails.cli.diagnose import diagnose
from guardrails.cli.fleet import fleet as fleet_command
from guardrails.diagnosis import fleets
from guardrails.diagnosis.findings import Facts, Finding, Session
from guardrails.diagnosis.fleets import Whose, reconcile
from guardrails.fleet import Fleet
from guardrails.fleet._fleet import store_of
from guardrails.fleet._sqlite_store import SQLiteStore
from guardrails.fleet._uses import BudgetUse, uses
from guardrails.testing.pgbouncer import PgBouncer
from support.polling import wait_until

ROLE = "fleet_shop"
ANY = Whose()


def run(command, *words):
    """Runs a command; its exit code and what it printed."""
    done = CliRunner().invoke(command, [*map(str, words)], env={"DATABASE_URL": None})
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.exit_code, done.output


# --- the rule -------------------------------------------------------------------------------------


def sessions(count, application="shop", user="app"):
    return tuple(
        Session(pid, application, "idle", 0, (), None, application, user, "db") for pid in range(count)
    )


def use(has, connected=None, connections=10):
    return BudgetUse("shop", "db", connections, has, has if connected is None else connected)


def compare(reports, answers, whose=ANY):
    """Compares with scripted reports and answers; what is left of them must be nothing."""
    reports, answers, pauses = iter(reports), iter(answers), []

    def ask():
        found = next(answers)
        return found if isinstance(found, Finding) else Facts("PostgreSQL", 100, 3, found, user="app")

    found = reconcile(whose, lambda: next(reports), ask, pauses.append)
    assert next(reports, None) is None
    assert next(answers, None) is None
    return found


def test_equal_numbers_are_no_finding():
    assert compare([use(4), use(4)], [sessions(4)]) == []


def test_a_fleet_that_grows_or_shrinks_meanwhile_is_no_finding():
    """The server is compared with the reports before and after it."""
    assert compare([use(2), use(6)], [sessions(5)]) == []
    assert compare([use(6), use(2)], [sessions(3)]) == []


def test_a_difference_that_is_gone_a_second_later_is_no_finding():
    assert compare([use(2), use(2), use(5), use(5)], [sessions(5), sessions(5)]) == []
    assert compare([use(2), use(2), use(5), use(5)], [sessions(5), sessions(2)]) == []


def test_sessions_that_no_worker_reports_are_a_finding():
    strangers = (*sessions(3), *sessions(2, "cron"), *sessions(9, user="other"))
    (finding,) = compare([use(3)] * 4, [strangers, strangers])
    assert finding.what == (
        "fleet budget 'db': the server has 5 connections of role 'app', the workers report 3: "
        "2 are not the fleet's"
    )
    assert finding.details == ("3 x 'shop'", "2 x 'cron'")
    (finding,) = compare([use(9)] * 4, [sessions(12)] * 2)
    assert finding.what.endswith("3 are not the fleet's, and the budget is 10")


def test_an_application_name_narrows_the_sessions():
    seen = (*sessions(3), *sessions(2, "cron"))
    assert compare([use(3)] * 2, [seen], Whose(application="shop")) == []
    (finding,) = compare([use(1)] * 4, [seen, seen], Whose(application="cron"))
    assert (
        "2 connections of role 'app' with the application name 'cron', the workers report 1" in finding.what
    )
    assert compare([use(5)] * 2, [sessions(5, user="web")], Whose(role="web")) == []


def test_connections_that_lead_elsewhere_are_a_finding():
    (finding,) = compare([use(8)] * 4, [sessions(2)] * 2)
    assert (
        "the workers report 8 connections, the server has only 2 of role 'app': 6 lead elsewhere"
        in finding.what
    )
    assert "pooler" in finding.advice


def test_workers_that_are_killed_are_missing_on_the_server_and_no_finding():
    assert compare([use(8, connected=2)] * 2, [sessions(2)]) == []


def test_many_programs_are_cut_and_a_silent_server_is_a_finding():
    seen = tuple(session for name in "abcdefg" for session in sessions(1, name))
    (finding,) = compare([use(1)] * 4, [seen, seen])
    assert finding.details[-1] == "and 2 more programs"
    assert finding.details[0] == "1 x 'a'"
    unreachable = Finding("unreachable", "no", (), "")
    assert compare([use(1)], [unreachable]) == [unreachable]


# --- on a real PostgreSQL -------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The workers of these tests have reported all that they have: nothing is to be waited for."""
    monkeypatch.setattr(fleets, "_RENEWED", 0.1)


@pytest.fixture
def role(postgres):
    """A role of its own, and how to connect as it."""
    with psycopg.connect(postgres.url(""), autocommit=True) as admin:
        admin.execute(f"create role {ROLE} login")
        yield SimpleNamespace(
            admin=admin,
            url=postgres.url("psycopg").replace("postgres@", f"{ROLE}@"),
            connect=lambda **more: psycopg.connect(postgres.url("").replace("postgres@", f"{ROLE}@"), **more),
        )
        admin.execute(f"select pg_terminate_backend(pid) from pg_stat_activity where usename = '{ROLE}'")
        admin.execute(f"drop role {ROLE}")


@contextlib.contextmanager
def worker(tmp_path, url, count, budget=10):
    """This process as a worker with some connections; the URL of the store."""
    store = f"sqlite:///{tmp_path}/fleet.db"
    fleet = Fleet(store, name="shop")
    # Idle connections in a transaction would be a finding, and would each keep one of a pooler's.
    settings = {"isolation_level": "AUTOCOMMIT", "connect_args": _named(url), "max_overflow": 0}
    engine = create_engine(url, pool_size=count, **settings)
    guard = protect(engine, fleet=fleet.budget("orders-db", connections=budget, minimum=count))
    held = [engine.connect() for _ in range(count)]
    for each in held:
        each.execute(text("select 1"))
    try:
        reports = store_of(store, "shop")()
        wait_until(lambda: [each.has for each in uses(reports.read()) if each.name == "orders-db"] == [count])
        yield store
    finally:
        for each in held:
            each.close()
        guard.detach()
        engine.dispose()
        fleet.close()


def _named(url):
    return {"application_name": "shop"} if "postgresql" in url else {}


def test_strangers_on_a_real_server_are_found_by_all_commands(role, tmp_path):
    with worker(tmp_path, role.url, 3) as store:
        code, output = run(fleet_command, store, "--database-url", role.url)
        assert (code, output.splitlines()[-1]) == (0, "server: nothing found.")
        with role.connect(application_name="cron"), role.connect(application_name="psql"):
            code, output = run(fleet_command, store, "--database-url", role.url)
            assert code == 1
            assert (
                "server: fleet budget 'orders-db': the server has 5 connections of role 'fleet_shop', "
                "the workers report 3: 2 are not the fleet's\n    3 x 'shop'\n"
            ) in output
            admin = role.url.replace(f"{ROLE}@", "postgres@")
            words = ("--database-url", admin, "--role", ROLE, "--application", "cron", "--json")
            (finding,) = json.loads(run(fleet_command, store, *words)[1])["server"]
            assert "the server has only 1 of role 'fleet_shop' with the application name" in finding["what"]
            code, output = run(diagnose, admin, "--fleet", store, "--role", ROLE, "--json")
            kinds = [each["kind"] for each in json.loads(output)["findings"]]
            assert (code, kinds) == (1, ["fleet"])
        assert run(diagnose, role.url, "--fleet", store)[0] == 0


def test_behind_a_pooler_the_server_has_fewer(role, tmp_path, postgres):
    """All connections of the workers lead to the pooler, which has five to the server."""
    if not PgBouncer.installed():
        pytest.skip("pgbouncer is not installed")
    with (
        PgBouncer.start(postgres) as bouncer,
        worker(tmp_path, bouncer.url(database="template1"), 8) as store,
    ):
        words = ("--database-url", postgres.url(), "--application", "shop")
        code, output = run(fleet_command, store, *words)
    assert code == 1
    assert "the workers report 8 connections, the server has only " in output
    assert "a pooler in between" in output


def test_strangers_on_mariadb_are_found(mariadb, tmp_path):
    """As the user sees its own sessions without a privilege."""
    url = f"mysql+pymysql://lab@127.0.0.1:{mariadb.port}/guardrails?ssl_disabled=true"
    with worker(tmp_path, url, 2) as store:
        assert run(fleet_command, store, "--database-url", url)[0] == 0
        with pymysql.connect(
            host="127.0.0.1", port=mariadb.port, user="lab", database="guardrails", ssl_disabled=True
        ):
            code, output = run(fleet_command, store, "--database-url", url)
    assert code == 1
    assert "the server has 3 connections of role 'lab', the workers report 2: 1 are not the fleet's" in output


def test_wrong_options_are_usage_errors(tmp_path):
    store = f"sqlite:///{tmp_path}/fleet.db"
    SQLiteStore(f"{tmp_path}/fleet.db", "shop").exchange([])
    for command, words, said in (
        (fleet_command, (store, "--role", "app"), "need --database-url"),
        (fleet_command, (store, "--database-url", "canary"), "--database-url must be the URL of a server"),
        (fleet_command, ("canary", "--database-url", "postgresql://h/d"), "url must begin with"),
        (diagnose, ("postgresql://h/d", "--role", "app"), "need --fleet"),
        (diagnose, ("redis://h", "--fleet", store), "--fleet compares with a database"),
    ):
        code, output = run(command, *words)
        text_of = " ".join(output.replace("│", " ").split())
        assert (code, said in text_of) == (2, True), (words, output)
        assert "canary" not in output


def test_a_budget_is_chosen_where_there_are_several(role, tmp_path):
    with worker(tmp_path, role.url, 1) as store:
        fleet = Fleet(store, name="shop")
        engine = create_engine(f"sqlite:///{tmp_path}/stock.db")
        guard = protect(engine, fleet=fleet.budget("stock-db", connections=5))
        with engine.connect():
            code, output = run(fleet_command, store, "--database-url", role.url)
            assert code == 2
            said = " ".join(output.replace("│", " ").split())
            assert "with --budget: 'orders-db' of 'shop', 'stock-db' of 'shop'" in said
            words = ("--database-url", role.url, "--budget", "orders-db")
            assert run(fleet_command, store, *words)[0] == 0
        guard.detach()
        fleet.close()


def test_what_is_not_compared_is_a_finding(role, tmp_path):
    """A wrong name, a wrong store and a fleet without workers are no all-clear."""
    with worker(tmp_path, role.url, 1) as store:
        for words, said in (
            (("--budget", "orders_db"), "no worker reports the budget 'orders_db': nothing was compared"),
            (("--name", "shpo"), "no worker reports any budget of the fleet 'shpo': nothing was compared"),
        ):
            for command in (
                (fleet_command, store, "--database-url", role.url),
                (diagnose, role.url, "--fleet", store),
            ):
                code, output = run(*command, *words)
                assert (code, said in output) == (1, True), output
                assert "Reported are: 'orders-db' of 'shop'" in output
    empty = f"sqlite:///{tmp_path}/other.db"
    SQLiteStore(f"{tmp_path}/other.db", "shop").exchange([])
    code, output = run(fleet_command, empty, "--database-url", role.url)
    assert (code, "no worker reports any budget: nothing was compared" in output) == (1, True)
    assert "Reported are: none" in output


def test_a_fleet_is_chosen_where_several_have_the_budget(role, tmp_path):
    with worker(tmp_path, role.url, 1) as store:
        fleet = Fleet(store, name="staging")
        guard = Guard("orders", max_concurrent_calls=5, fleet=fleet.budget("orders-db", connections=5))
        guard.run(int)
        wait_until(lambda: len(list(uses(store_of(store, "")().read()))) == 2)
        command = (diagnose, role.url, "--fleet", store, "--budget", "orders-db")
        code, output = run(*command)
        said = " ".join(output.replace("│", " ").split())
        assert (code, "with --name: 'orders-db' of 'shop', 'orders-db' of 'staging'" in said) == (2, True)
        assert run(*command, "--name", "shop")[0] == 0
        fleet.close()


def test_the_password_of_the_server_is_not_shown(tmp_path):
    with worker(tmp_path, f"sqlite:///{tmp_path}/shop.db", 1) as store:
        code, output = run(fleet_command, store, "--database-url", "postgresql://u:canary@127.0.0.1:1/canary")
    assert code == 1
    assert "canary" not in output
    assert make_url("postgresql://u:canary@h").password == "canary"
