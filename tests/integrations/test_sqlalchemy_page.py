"""What the page about SQLAlchemy says is shown, and for which drivers, is what pytest finds."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
from collections import defaultdict

from support.paths import DOCS, ROOT
from support.sql_lab import DRIVERS, drivers

HERE = pathlib.Path(__file__).parent
PAGE = DOCS / "sqlalchemy.md"
WORDS = {
    "all": drivers(),
    "threads": drivers(is_async=False),
    "loops": drivers(is_async=True),
    "threads of PostgreSQL": drivers("postgres", is_async=False),
    "PostgreSQL": drivers("postgres"),
    "PostgreSQL, not psycopg2": set(drivers("postgres")) - {"psycopg2"},
    "all but asyncpg": set(drivers()) - {"asyncpg"},
    "psycopg, asyncpg": {"psycopg", "asyncpg"},
    "MariaDB": drivers("mariadb"),
    "SQLite": (),
}


def promised():
    """The tests the page names, each with the drivers it claims for it."""
    table = PAGE.read_text().partition("## Proof")[2].partition("## ")[0]
    for who, names in re.findall(r"^\|[^|]*\| ([^|]+) \| (`[^|]+`) \|$", table, re.MULTILINE):
        for name in re.findall(r"`(\w+::\w+)`", names):
            yield name, set(WORDS[who])


def collected(rooms):
    """The tests there are, each with the drivers it is run for."""
    files = [str(HERE / f"test_sqlalchemy_{room}.py") for room in rooms]
    words = [sys.executable, "-m", "pytest", "--collect-only", "-q", "--numprocesses=0", *files]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True, timeout=100)
    found = defaultdict(set)
    pattern = r"test_sqlalchemy_(\w+)\.py::(\w+)(?:\[(.*)\])?$"
    for room, test, parameters in re.findall(pattern, listed.stdout, re.MULTILINE):
        found[f"{room}::{test}"] |= DRIVERS.keys() & set(parameters.split("-"))
    return found


def test_tests_of_the_page_exist():
    """Each test the page names is there and is run for the drivers it says, no more and no less."""
    claims = dict(promised())
    assert len(claims) > 25
    found = collected({name.partition("::")[0] for name in claims})
    assert {name: found.get(name) for name in claims} == claims
