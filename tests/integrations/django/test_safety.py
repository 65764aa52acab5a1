"""Management commands and test runners reach the database they are meant for, and no other.

Production holds rows that must be there afterwards. Its server and a decoy's, which libpq would choose by
itself, write down every statement; nothing may stand there in the name of production or the decoy.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import psycopg
import pytest

from guardrails.testing.servers import PostgresServer
from support.forks import ForkServer
from support.paths import ROOT, SUPPORT
from support.polling import poll

SITE = SUPPORT / "django_site"
OURS = "guardrails.integrations.django.postgresql"
BARE = "django.db.backends.postgresql"

CANARIES = ["first", "second", "third"]
FORBIDDEN = {"production", "production_two", "decoy"}
LOGGED = {"log_statement": "all", "log_disconnections": "on", "log_line_prefix": "<%d|%a>"}

POOL = {"pool": {"min_size": 1, "max_size": 8, "timeout": 10}}
ONE, OTHER = {"guard": "shop.guards.db"}, {"guard": "shop.guards.second"}

LAYOUTS = {
    "no pool": {"default": ONE, "second": OTHER},
    "pools": {"default": ONE | POOL, "second": OTHER | POOL},
    "a pool, then none, one guard": {"default": ONE | POOL, "second": ONE},
    "none, then a pool, one guard": {"default": ONE, "second": ONE | POOL},
}

RUNS = {
    "manage.py test": [["manage.py", "test", "--noinput"]],
    "--keepdb, twice": [["manage.py", "test", "--noinput", "--keepdb"]] * 2,
    "--parallel 2": [["manage.py", "test", "--noinput", "--parallel", "2"]],
    "--parallel 2 --keepdb, twice": [["manage.py", "test", "--noinput", "--parallel", "2", "--keepdb"]] * 2,
    "pytest-django": [["-m", "pytest", "-n", "0"]],
    "pytest-django, xdist": [["-m", "pytest", "-n", "2"]],
    "pytest-django, --reuse-db, twice": [["-m", "pytest", "-n", "0", "--reuse-db"]] * 2,
}
PYTEST = [
    "-q",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:randomly",
    "--ds=site_settings",
    "-c",
    "pytest.ini",
    "pytest_shop.py",
]


COMMANDS = ("check", "dbshell", "dumpdata", "flush", "inspectdb", "migrate", "shell", "test")
LIBRARIES = (
    *("django.contrib.auth.hashers", "django.db.migrations.executor", "django.test.runner"),
    *(f"django.core.management.commands.{name}" for name in COMMANDS),
    *("psycopg_pool", f"{OURS}.base"),
)


class Site:
    """A production server, a decoy, and what has happened on them.

    Args:
        production: The server whose data must stay.
        decoy: The server that libpq would choose by itself.
        libraries: Runs a command of Django's in a fork of a process that has imported what it needs.
        output: The folder of what such a command prints.
    """

    def __init__(self, production, decoy, libraries, output):
        self.production = production
        self.decoy = decoy
        self.libraries = libraries
        self.output = output
        self.databases = {"production": production, "production_two": production, "decoy": decoy}

    def prepare(self):
        """Databases as they were before anybody made a mistake; what was logged so far is forgotten."""
        with self.connect(self.production, "postgres") as connection:
            names = [row[0] for row in connection.execute("select datname from pg_database")]
            for name in names:
                if name not in {"postgres", "template0", "template1"}:
                    connection.execute(f'drop database "{name}" with (force)')
            for name in ("production", "production_two", "scratch"):
                connection.execute(f"create database {name}")
        for name, server in self.databases.items():
            with self.connect(server, name) as connection:
                connection.execute("drop table if exists shop_item")
                connection.execute("create table shop_item (id bigserial primary key, name varchar(40))")
                for canary in CANARIES:
                    connection.execute("insert into shop_item (name) values (%s)", (canary,))
        self.marks = {server: len(log_of(server)) for server in (self.production, self.decoy)}

    def connect(self, server, name):
        """A connection of the test's own, which the logs tell apart."""
        return psycopg.connect(server.url("", name), autocommit=True, application_name="canary")

    def canaries(self):
        """The rows of each database that nobody may touch."""
        found = {}
        for name, server in self.databases.items():
            with self.connect(server, name) as connection:
                found[name] = [row[0] for row in connection.execute("select name from shop_item order by id")]
        return found

    def tables(self, name):
        """The tables of one of the production server's databases."""
        with self.connect(self.production, name) as connection:
            question = "select tablename from pg_tables where schemaname = 'public'"
            return {row[0] for row in connection.execute(question)}

    def seen(self, server):
        """The databases of a server that somebody came to since ``prepare``, with what was said there."""
        said = {}
        for line in log_of(server)[self.marks[server] :].splitlines():
            database, _, rest = line.removeprefix("<").partition("|")
            if line.startswith("<") and not rest.startswith("canary>"):
                said.setdefault(database, []).append(rest)
        return said

    def environment(self, layout, engine=OURS, names=("production", "production_two"), **more):
        """The settings, and a decoy for whoever leaves libpq the choice."""
        entries = {
            alias: {
                "ENGINE": engine,
                "NAME": name,
                "HOST": "127.0.0.1",
                "PORT": str(self.production.port),
                "USER": "postgres",
                "OPTIONS": {key: value for key, value in options.items() if engine == OURS or key != "guard"},
                **more,
            }
            for (alias, options), name in zip(layout.items(), names, strict=True)
        }
        address = {"PGHOST": "127.0.0.1", "PGPORT": str(self.decoy.port), "PGUSER": "postgres"}
        return (
            os.environ
            | address
            | {
                "PGDATABASE": "decoy",
                "PYTHONPATH": str(ROOT),
                "SITE_DATABASES": json.dumps(entries),
            }
        )

    def run(self, words, environment):
        """Runs one command and returns what it printed."""
        if words[0] == "manage.py":
            code, printed = self.libraries.run(
                SITE, "manage", *words[1:], environ=environment, output=self.output
            )
            assert code == 0, printed
            return printed
        words = [*words, *PYTEST]
        done = subprocess.run(
            [sys.executable, *words],
            cwd=SITE,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def check(self):
        """Nothing has happened where nothing may happen."""
        assert self.canaries() == dict.fromkeys(self.databases, CANARIES)
        reached = {"production server": self.seen(self.production), "decoy": self.seen(self.decoy)}
        reached["production server"] = {
            name: said for name, said in reached["production server"].items() if name in FORBIDDEN
        }
        reached["decoy"].pop("", None)  # the server's own housekeeping
        assert reached == {"production server": {}, "decoy": {}}


def log_of(server):
    """What a server has written."""
    return server._log.read_text(errors="replace")


@pytest.fixture(scope="module")
def servers():
    """Two servers that write everything down."""
    with PostgresServer.start(settings=LOGGED) as production, PostgresServer.start(settings=LOGGED) as decoy:
        with psycopg.connect(decoy.url(""), autocommit=True) as connection:
            connection.execute("create database decoy")
        yield production, decoy


@pytest.fixture(scope="module")
def libraries():
    """A process that has imported Django and the drivers, and connected to nothing."""
    with ForkServer(*LIBRARIES) as server:
        yield server


@pytest.fixture
def site(servers, libraries, tmp_path):
    """Both, with their canaries."""
    site = Site(*servers, libraries, tmp_path)
    site.prepare()
    return site


QUICK = {("manage.py test", "pools")}
"""What is always run; the rest of the table is marked slow."""

CASES = [
    pytest.param(run, layout, marks=() if (run, layout) in QUICK else pytest.mark.slow)
    for run in RUNS
    for layout in LAYOUTS
]


@pytest.mark.first
@pytest.mark.parametrize(("run", "layout"), CASES)
def test_test_runners_leave_production_alone(site, run, layout):
    """Whatever the order of the aliases, and whether they have pools or share a guard."""
    environment = site.environment(LAYOUTS[layout])
    for words in RUNS[run]:
        site.run(words, environment)
    site.check()
    reached = site.seen(site.production).keys()
    assert {name.partition("_production")[0] for name in reached if "production" in name} == {"test"}


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["no pool", "pools"])
def test_djangos_own_backend_passes_the_same_test(site, layout):
    """So that what is asked for above is no more than what Django itself does."""
    site.run(["manage.py", "test", "--noinput"], site.environment(LAYOUTS[layout], engine=BARE))
    site.check()


def test_whoever_reaches_production_is_noticed(site):
    """By its statement, and by its row."""
    with psycopg.connect(site.production.url("", "production"), autocommit=True) as connection:
        connection.execute("delete from shop_item where name = 'first'")
    assert site.canaries()["production"] == CANARIES[1:]
    poll(lambda: "production" in site.seen(site.production), "it stands in the log")
    with pytest.raises(AssertionError):
        site.check()


def has_psql():
    """Debian's program of that name needs another package, whose absence it reports when it is run."""
    return (
        shutil.which("psql")
        and subprocess.run(["psql", "--version"], check=False, capture_output=True).returncode == 0
    )


@pytest.mark.slow
@pytest.mark.sampled(1)
@pytest.mark.parametrize("pool", [{}, POOL], ids=["no pool", "pool"])
def test_commands_reach_the_alias_they_are_told(site, pool):
    """And no other: one that is emptied, filled, read and looked at."""
    layout = dict.fromkeys(("default", "second", "scratch"), ONE | pool)
    environment = site.environment(layout, names=("production", "production_two", "scratch"))
    told = ["--database", "scratch"]
    site.run(["manage.py", "migrate", *told], environment)
    assert "shop_item" in site.tables("scratch")
    site.run(["manage.py", "check", *told], environment)
    add = "from shop.models import Item; Item.objects.using('scratch').create(name='mine')"
    site.run(["manage.py", "shell", "-c", add], environment)
    assert "mine" in site.run(["manage.py", "dumpdata", "shop", *told], environment)
    assert "class ShopItem" in site.run(["manage.py", "inspectdb", *told], environment)
    site.run(["manage.py", "flush", "--noinput", *told], environment)
    assert site.run(["manage.py", "dumpdata", "shop", *told], environment).strip() == "[]"
    if has_psql():
        shell = ["manage.py", "dbshell", *told, "--", "-c", "select current_database()"]
        assert "scratch" in site.run(shell, environment)
    site.check()
