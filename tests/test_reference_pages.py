"""The pages of docs/reference/ have each setting, error, event, metric and flag of the code, and no other."""

from __future__ import annotations

import dataclasses
import inspect
import random
import re
import time
import tomllib
from collections import Counter, defaultdict

import click
import pytest
from sqlalchemy import create_engine

import guardrails
from guardrails import Adaptive, BreakerPolicy, Guard, RetryBudget, events, guarded, protect, retrying
from guardrails._guard.auto_compartments import MOST
from guardrails._guard.compartments import compartment_for
from guardrails._guard.metric_table import CLASSIC, METRICS
from guardrails._http.settings import HTTPSettings, StatusSettings
from guardrails._pool.life import LifeSettings
from guardrails.cli._commands import commands
from guardrails.fleet import Fleet
from guardrails.integrations.asyncpg import guard_pool as guard_asyncpg_pool
from guardrails.integrations.prometheus import GuardCollector
from guardrails.integrations.psycopg_pool import guard_pool as guard_psycopg_pool
from guardrails.integrations.redis import guard_client
from guardrails.integrations.sqlalchemy import guard_engine
from support.paths import DOCS, ROOT


def rows(page):
    """The cells of the rows of a page's tables; a row begins with a word in code."""
    lines = (DOCS / "reference" / page).read_text().splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| `")]


def code(cell):
    """The words in a cell's backticks."""
    return re.findall(r"`([^`]+)`", cell)


# --- settings ------------------------------------------------------------------------------------


def parameters(function, without=()):
    """The settings of a function by their names, with their defaults."""
    return {
        each.name: each.default
        for each in inspect.signature(function).parameters.values()
        if each.name not in ("self", *without) and each.kind is not each.VAR_KEYWORD
    }


def declared(cls):
    """The settings of a dataclass, with their defaults."""
    return {field.name: field.default for field in dataclasses.fields(cls)}


LIFE = declared(LifeSettings)
TAKEN = {
    "engines": parameters(guard_engine, without=["engine"]) | LIFE,
    "Redis": parameters(guard_client, without=["client"]) | LIFE,
    "asyncpg": parameters(guard_asyncpg_pool, without=["pool"]) | LIFE,
    "psycopg_pool": parameters(guard_psycopg_pool, without=["pool"]),
}
"""The settings of `protect` besides those of a guard, by what is protected."""

TAKERS = {
    frozenset(TAKEN): "protect",
    frozenset({"engines", "Redis", "asyncpg"}): "protect: not psycopg_pool",
    frozenset({"engines", "asyncpg", "psycopg_pool"}): "protect: engines, drivers' pools",
    frozenset({"engines", "Redis"}): "protect: engines, Redis",
    frozenset({"engines"}): "protect: engines",
}
"""What the page calls a setting by the kinds of targets that take it."""


def settings_of_protect():
    """The settings by what the page calls them."""
    found = defaultdict(dict)
    for name in {name for taken in TAKEN.values() for name in taken}:
        takers = frozenset(kind for kind, taken in TAKEN.items() if name in taken)
        defaults = [TAKEN[kind][name] for kind in takers]
        found[TAKERS[takers]][name] = defaults[0] if len({*map(repr, defaults)}) == 1 else None
    return found


SETTINGS = {
    "Guard": parameters(Guard, without=["name"]),
    "Adaptive": declared(Adaptive),
    "BreakerPolicy": declared(BreakerPolicy),
    **settings_of_protect(),
    "middleware": declared(HTTPSettings),
    "status pages": declared(StatusSettings) | {"guards": inspect.Parameter.empty},
    "Fleet": parameters(Fleet),
    "Fleet.budget": parameters(Fleet.budget, without=["name"]),
    "guarded": parameters(guarded, without=["guard"]),
    "retrying": parameters(retrying),
    "RetryBudget": parameters(RetryBudget),
}
"""What has settings, as the page calls it."""

SHOWN = {
    inspect.Parameter.empty: "required",
    None: "None",
    True: "True",
    False: "False",
    time.monotonic: "`time.monotonic`",
    random.random: "`random.random`",
}


def shown(value):
    """How the page begins the cell of a default."""
    if isinstance(value, BreakerPolicy):
        return "`BreakerPolicy()`"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:g}"
    return f'`"{value}"`' if isinstance(value, str) else SHOWN[value]


def test_the_page_has_every_setting():
    """Each in a row of its own, under what it is a setting of."""
    listed = [(row[1], code(row[0])[0]) for row in rows("settings.md") if len(row) == 5]
    assert sorted(listed) == sorted((of, name) for of, names in SETTINGS.items() for name in names)


def test_the_page_has_the_defaults():
    """A cell begins with the default of the code, and may add its unit and what it means."""
    for setting, of, default, *_ in (row for row in rows("settings.md") if len(row) == 5):
        value = SETTINGS[of][code(setting)[0]]
        begins = shown(value) if value not in ((), None) else ("none", "None", "every guard")
        assert default.startswith(begins), f"{of} {setting}: {default}"


def test_the_page_has_every_variable():
    """The settings that GUARDRAILS_<GUARD>_... can set."""
    from guardrails._guard.environment import _WORDS  # noqa: PLC0415 - the table of this test alone

    text = (DOCS / "reference" / "settings.md").read_text().partition("## Settings from the environment")[2]
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert {name for line in table for name in code(line)} == {*_WORDS, "protect"}


# --- errors and events ---------------------------------------------------------------------------


def test_the_page_has_every_error():
    """With its bases and its fields."""
    named = {name for name in guardrails.__all__ if name.endswith("Error")}
    table = {code(row[0])[0]: row for row in rows("errors.md")}
    assert set(table) == named
    for name, (_, bases, _, fields, _) in table.items():
        cls = getattr(guardrails, name)
        module_and_name = (f"{base.__module__}.{base.__name__}" for base in cls.__bases__)
        assert code(bases) == [
            re.sub(r"^(builtins|guardrails.errors)\.", "", base) for base in module_and_name
        ]
        own = [attribute for attribute, value in vars(cls).items() if isinstance(value, property)]
        assert code(fields) in (own, []), name


def test_the_page_has_every_event():
    """With the fields that it has besides those of all events."""
    table = {code(row[0])[0]: row for row in rows("events.md")}
    common = {field.name for field in dataclasses.fields(events.Event)}
    assert set(table) == set(events.__all__) - {"Event", "Listener"}
    for name, (_, _, fields) in table.items():
        every = [field.name for field in dataclasses.fields(getattr(events, name))]
        assert code(fields) == [field for field in every if field not in common]


# --- metrics -------------------------------------------------------------------------------------


def exported(metric):
    """The name of a metric on Prometheus' page."""
    return metric.prometheus_name + ("_total" if metric.kind == "counter" else "")


def test_the_page_has_every_metric():
    """Those of compartments have the names of the guards' with another prefix, so they have no rows."""
    names = {exported(metric) for metric in (*METRICS, *CLASSIC)}
    compartments = {name for name in names if name.startswith("guardrails_compartment_")}
    assert {code(row[0])[0] for row in rows("metrics.md")} == names - compartments
    guards = {name.replace("_compartment_", "_") for name in compartments}
    assert guards < names


def test_the_page_has_kinds_and_labels():
    """The labels beside those that the text above a table names."""
    table = {code(row[0])[0]: row for row in rows("metrics.md") if len(row) == 4}
    for metric in METRICS:
        if exported(metric) in table:
            _, kind, labels, _ = table[exported(metric)]
            rest = {
                label
                for label in metric.prometheus_labels
                if label not in ("guard", "db_client_connection_pool_name")
            }
            assert (kind, {code(part)[0] for part in labels.split(", ") if part}) == (metric.kind, rest)


def test_the_page_has_the_number_of_series():
    """A guard with every compartment that can form by itself, and enough calls for a verdict in each."""
    engine = create_engine("sqlite://")
    guard = protect(engine, name="shop", max_concurrent_calls=1, timeout=None)
    for number in range(MOST + 5):
        part = compartment_for(guard, f"shop.view_{number}", f"view_{number}")
        for _ in range(BreakerPolicy().minimum_number_of_calls):
            with part.call(), engine.connect() as connection:
                connection.exec_driver_sql("select 1")
    engine.dispose()
    samples = [sample for metric in GuardCollector([guard]).collect() for sample in metric.samples]
    series = Counter(
        sample.labels["compartment"]
        for sample in samples
        if sample.name.startswith("guardrails_compartment_")
    )
    text = (DOCS / "reference" / "metrics.md").read_text()
    each, number, all_of_them = re.search(
        r"at most (\d+) series.*?At most (\d+) compartments.*?at most ([\d,]+) series", text, re.DOTALL
    ).groups()
    assert set(series.values()) == {int(each)}
    assert (len(series), series.total()) == (int(number), int(all_of_them.replace(",", "")))


# --- commands ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", commands.list_commands(None))
def test_the_page_has_every_flag(name):
    """In the order of --help."""
    command = commands.get_command(None, name)
    flags = [flag.opts[0] for flag in command.params if isinstance(flag, click.Option)]
    row = next(row for row in rows("commands.md") if row[0].startswith(f"`guardrails {name}"))
    assert code(row[2]) == flags


# --- versions ------------------------------------------------------------------------------------

DISTRIBUTIONS = {"psycopg2": "psycopg2-binary", "psycopg_pool": "psycopg-pool", "redis-py": "redis"}


def test_the_page_has_the_oldest_versions():
    """Those that pyproject.toml allows, of each library that the page lists."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [
        *project["dependencies"],
        *(need for extra in project["optional-dependencies"].values() for need in extra),
    ]
    oldest = dict(re.findall(r"([\w.-]+)(?:\[\w+\])?>=([\d.]+)", "\n".join(needed)))
    text = (DOCS / "reference" / "versions.md").read_text()
    table = text.partition("| library | oldest |")[2].partition("\n\n")[0].splitlines()[2:]
    for line in table:
        library, version = (cell.strip() for cell in line.split("|")[1:3])
        name = DISTRIBUTIONS.get(library, library.lower())
        assert oldest[name] == version, library
