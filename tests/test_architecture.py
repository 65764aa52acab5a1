"""The rooms of docs/flow.md, held to: imports point down, the core is pure, modules stay small."""

from __future__ import annotations

import ast
import sys

import pytest

from support.paths import PACKAGE

MODULES = sorted(PACKAGE.rglob("*.py"))

WORDS = {
    "errors",
    "events",
    "_policy",
    "_outcome",
    "_checks",
    "_circuit_open",
    "_identity",
    "_callables",
    "_lazily",
    "_criticality",
    "_mishap",
    "_workload_names",
    "_unseen",
}
SHELL_ORDER = [
    # Each may import what stands before it.
    {"_deadline", "_alarm", "_fork", "_housekeeper", "_reports", "_telling"},
    {"_waiting", "_snapshot", "_budget", "_again", "_pulse"},
    {
        "_gate",
        "_ringing",
        "_timeouts",
        "_consecutive",
        "_voices",
        "_retry_loop",
        "_retry_rules",
        "_retrying",
        "_fallback",
    },
    {"_passage", "_crossing", "_auto_compartments"},
    {"_call", "_slot"},
    {"_guard", "_circuitbreaker"},
    {"_bulkhead", "_decorator", "_protect", "_recovery"},
]
HEIGHTS = {
    "_core": 1,
    "": 10,
    "pools": 15,
    "integrations": 20,
    "diagnosis": 25,
    "cli": 30,
    "demo": 30,
    "testing": 30,
}
"""Of the packages; the first without a name is the one of the public names."""

IMPURE = {"asyncio", "contextvars", "logging", "os", "random", "threading", "time"}

LARGE = {
    "_core/breaker.py": "one state machine; halves of it would each need the other half's numbers",
    "_core/gate.py": "one door: circuit and slots change together, move by move",
    "_guard/call.py": "the quick way of a call is written out beside the long one, which means the same",
    "_runtime/scope.py": "the one ambient state, with each kind of scope that there is",
    "_guard/locked_gate.py": "one lock; everything that may touch the gate is here, so that nothing else does",
    "_guard/guard.py": "the public class; half of it is its documentation",
}
LONG = {
    "_guard/call.py: slip_in": "the way every call goes: a function called from it would cost as much as its rules",
    "_guard/slot.py: run_in_slot": "likewise, for a bulkhead",
    "_dbapi/runner.py: run": "likewise, for every statement",
    "integrations/sqlalchemy/_statements.py: around": "likewise; what it makes runs for every statement",
    "demo/report.py: _charts": "four charts, written down one after the other",
}


def name_of(path):
    """The module's path below the package, such as ``_core/core.py``."""
    return path.relative_to(PACKAGE).as_posix()


def imports_of(path):
    """The dotted names a module imports at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import"
            yield node.module


def height(module):
    """How high a module stands; it may import what stands lower, or beside it in its package."""
    first = module.split(".")[0]
    for level, names in enumerate(SHELL_ORDER, start=2):
        if first in names:
            return level
    if first in WORDS:
        return 0
    assert first in HEIGHTS, f"{module} is in no room: say in docs/flow.md and here where it belongs"
    return HEIGHTS[first]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path):
    """Tools import integrations, those the public names or the shell, the shell the core, the core words."""
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    here = ".".join(part for part in parts if part != "__init__")
    for name in imports_of(path):
        if name.split(".")[0] != "guardrails" or here == "":
            continue
        there = name.removeprefix("guardrails").lstrip(".")
        same_package = here.split(".")[0] == there.split(".")[0] and height(here) in {1, 15, 20, 25, 30}
        tools = height(here) == height(there) == 30
        within_words = height(here) == height(there) == 0
        within_shell = 2 <= height(here) == height(there) < 10
        assert height(there) < height(here) or same_package or tools or within_words or within_shell, (
            f"{here} imports {there}"
        )


@pytest.mark.parametrize("path", sorted((PACKAGE / "_core").glob("*.py")), ids=name_of)
def test_core_is_pure(path):
    """Nothing in the core can read a clock, lock, wait, log or roll dice."""
    assert not IMPURE & {name.split(".")[0] for name in imports_of(path)}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_foreign_packages_stay_at_the_edge(path):
    """Below the edge there is the standard library and pybreaker."""
    if name_of(path).split("/")[0] in {*HEIGHTS} - {"_core", "pools"}:
        return
    allowed = {"guardrails", "pybreaker", "tenacity", *sys.stdlib_module_names}
    assert {name.split(".")[0] for name in imports_of(path)} <= allowed


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_and_functions_are_small(path):
    """A module has at most 300 lines and a function at most 40, its docstring aside, or is defended here."""
    text = path.read_text()
    assert text.count("\n") <= 300 or name_of(path) in LARGE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            words = docstring.count("\n") + 1 if docstring else 0
            short = node.end_lineno - node.lineno + 1 - words <= 40
            assert short or f"{name_of(path)}: {node.name}" in LONG, f"{name_of(path)}: {node.name} is long"
