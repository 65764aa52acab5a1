"""Imports point down the rooms of docs/internals/architecture.md, in no circle; modules stay small."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import sys
from pathlib import Path

import pytest

from support.paths import DOCS, PACKAGE

ROOMS = re.findall(r"^\| `(\w+)` \|", (DOCS / "internals" / "architecture.md").read_text(), re.MULTILINE)
"""The rooms of the page, from the top: each may import those below it."""

MODULES = {
    ".".join(("guardrails", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

FOREIGN = {
    "errors": {"pybreaker"},
    "_pybreaker": {"pybreaker"},
    "_retry": {"tenacity"},
    "_guard": {"tenacity"},
    # The driver aiosqlite runs behind SQLAlchemy's greenlets, and no other way.
    "_dbapi": {
        "MySQLdb",
        "aiomysql",
        "asyncmy",
        "asyncpg",
        "pg8000",
        "psycopg",
        "psycopg2",
        "pymysql",
        "sqlalchemy",
    },
}
"""The packages that a room may import besides the standard library. Those above ``_http`` may import any."""

IMPURE = {"asyncio", "contextvars", "logging", "os", "random", "threading", "time"}

LARGE = {
    "_core/breaker.py": "one state machine: each half would need the other half's numbers",
    "_core/gate.py": "circuit and slots change together, move by move",
    "errors.py": "every public error, whose documentation is half of it",
    "integrations/redis/_commands.py": "the only place that begins and ends a command, in both flavours",
    "_runtime/scope.py": "the only ambient state, with every kind of scope",
    "_guard/fast_path.py": "every straight line without a lock, under one explanation of why it needs none",
    "_guard/call.py": "one call in both flavours: each step must know what the others have taken",
    "_guard/locked_gate.py": "one lock: whatever may touch the gate is here, so that nothing else does",
    "_guard/guard.py": "the public class; half of it is its documentation",
    "simulation/fleet_worker.py": "one worker: its pool, its ticks and its lease share their state",
}
LONG = {
    "_guard/fast_path.py: try_enter_fast": "every call runs it: one more would cost as much as its rules",
    "_guard/fast_path.py: end": "likewise, and a straight line cannot be divided",
    "_dbapi/runner.py: run": "likewise, for every statement",
    "_dbapi/runner_on_loop.py: run_async": "the twin of run",
    "integrations/sqlalchemy/_statements.py: around": "likewise: what it makes runs for every statement",
}


def room_of(module):
    """The room of a module of ours: its folder, or its own name at the top of the package."""
    return [*module.split("."), "guardrails"][1]


@functools.cache
def imports_of(path):
    """Every module that a file imports, at any depth, under ``TYPE_CHECKING`` too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {name if name in MODULES else node.module for name in names}
    return found


@functools.cache
def arrows():
    """The modules of ours that each of them imports; not read while tests are collected."""
    return {
        name: {found for found in imports_of(path) if found in MODULES} - {name}
        for name, path in MODULES.items()
    }


def test_the_page_names_every_room_once():
    """A new folder needs its sentence there."""
    assert sorted(ROOMS) == sorted({room_of(module) for module in MODULES})


def test_the_page_names_files_that_exist():
    """In "Where to find it" a name without a folder is in the folder of the name before it."""
    table = (DOCS / "internals" / "architecture.md").read_text().partition("### Where to find it")[2]
    folder = PACKAGE
    for name in re.findall(r"`([\w/]+(?:\.py|/))`", table):
        folder = (PACKAGE / name).parent if "/" in name else folder
        assert (folder / Path(name).name).exists(), name


def test_imports_point_to_rooms_further_down():
    """No room imports one that stands above it on the page."""
    rooms = {(room_of(importer), room_of(found)) for importer in arrows() for found in arrows()[importer]}
    assert [(a, b) for a, b in sorted(rooms) if ROOMS.index(a) > ROOMS.index(b)] == []


def test_modules_import_each_other_in_no_circle():
    """Not even for the sake of type checkers."""
    graphlib.TopologicalSorter(arrows()).prepare()


@pytest.mark.parametrize("module", [name for name in MODULES if room_of(name) == "_core"])
def test_the_core_is_pure(module):
    """Nothing in the core can read a clock, lock, wait, log or roll dice."""
    assert not IMPURE & {name.split(".")[0] for name in imports_of(MODULES[module])}


@pytest.mark.parametrize(
    "module", [name for name in MODULES if ROOMS.index(room_of(name)) >= ROOMS.index("_http")]
)
def test_foreign_packages_stay_in_their_rooms(module):
    """Below the integrations there is the standard library, and what `FOREIGN` lists."""
    allowed = {"guardrails", *sys.stdlib_module_names, *FOREIGN.get(room_of(module), ())}
    assert {name.split(".")[0] for name in imports_of(MODULES[module])} <= allowed


def long_functions(path):
    """The functions of a file with more than 40 lines, their docstrings left out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            words = docstring.count("\n") + 1 if docstring else 0
            if node.end_lineno - node.lineno + 1 - words > 40:
                yield f"{path.relative_to(PACKAGE).as_posix()}: {node.name}"


def test_modules_and_functions_are_small():
    """At most 300 lines a module, and 40 a function without its docstring; the others are defended."""
    paths = MODULES.values()
    large = {path.relative_to(PACKAGE).as_posix() for path in paths if path.read_text().count("\n") > 300}
    assert large == set(LARGE)
    assert {name for path in paths for name in long_functions(path)} == set(LONG)
