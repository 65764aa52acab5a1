"""Every setting of every public object against the same ten values: accepted by rule, or refused by name.

In the tables ``ok`` is accepted and ``.`` is a ConfigurationError that names the setting.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from datetime import timedelta
from decimal import Decimal

import asyncpg
import fakeredis
import psycopg
import pytest
import sqlalchemy
import sqlalchemy.ext.asyncio
import sqlalchemy.orm
from redis import Redis

from guardrails import (
    Adaptive,
    BreakerPolicy,
    Bulkhead,
    CircuitBreaker,
    ConfigurationError,
    Guard,
    RetryBudget,
    deadline,
    guarded,
    holding,
    protect,
    retrying,
)
from guardrails._util.checks import Faults, refuse_unknown
from support import django_lab

VALUES = [float("nan"), float("inf"), -1, 0, True, "5", None, 10**400, Decimal("0.5"), timedelta(seconds=1)]
COLUMNS = """
                                     NaN  inf  -1    0  True  '5' None 10**400 Decimal timedelta
"""


def protected_engine(**settings):
    """Protects an engine with the settings that only engines have."""
    protect(sqlalchemy.create_engine("sqlite://", poolclass=sqlalchemy.QueuePool), **settings).detach()


def django_database(**options):
    """Makes Django's connection to a database with some of its ``OPTIONS``; it connects to nothing."""
    guard = Guard("db", max_concurrent_calls=1)
    entry = {"ENGINE": django_lab.ENGINE, "NAME": "shop", "OPTIONS": {"guard": guard, **options}}
    with django_lab.configured("shop", entry):
        pass
    guard.detach()


TABLES = {
    BreakerPolicy: """
failure_rate_threshold                .    .    .    .    .    .    .    .       .       .
slow_call_rate_threshold              .    .    .    .    .    .    .    .       .       .
slow_call_duration_threshold          .    .    .    .    .    .    .    .       .       .
sliding_window_type                   .    .    .    .    .    .    .    .       .       .
sliding_window_size                   .    .    .    .    .    .    .    .       .       .
minimum_number_of_calls               .    .    .    .    .    .    .    .       .       .
wait_duration_in_open_state           .    .    .   ok    .    .    .    .       .       .
open_backoff_multiplier               .    .    .    .    .    .    .    .       .       .
max_wait_duration_in_open_state       .    .    .    .    .    .    .    .       .       .
open_jitter                           .    .    .   ok    .    .    .    .       .       .
permitted_calls_in_half_open_state    .    .    .    .    .    .    .    .       .       .
max_wait_duration_in_half_open_state  .    .    .    .    .    .    .    .       .       .
recovery_ramp                         .    .    .   ok    .    .    .    .       .       .
consecutive_failures                  .    .    .    .    .    .   ok    .       .       .
is_failure                            .    .    .    .    .    .   ok    .       .       .
is_failure_result                     .    .    .    .    .    .   ok    .       .       .
""",
    Adaptive: """
minimum                               .    .    .    .    .    .    .    .       .       .
maximum                               .    .    .    .    .    .   ok    .       .       .
mode                                  .    .    .    .    .    .    .    .       .       .
""",
    Guard: """
name                                  .    .    .    .    .   ok    .    .       .       .
max_concurrent_calls                  .    .    .    .    .    .    .    .       .       .
max_wait_duration                     .    .    .   ok    .    .    .    .       .       .
max_waiting                           .    .    .   ok    .    .   ok    .       .       .
timeout                               .    .    .    .    .    .   ok    .       .       .
breaker                               .    .    .    .    .    .   ok    .       .       .
listeners                             .    .    .    .    .    .    .    .       .       .
clock                                 .    .    .    .    .    .    .    .       .       .
random                                .    .    .    .    .    .    .    .       .       .
""",
    Guard.compartment: """
name                                  .    .    .    .    .   ok    .    .       .       .
max_concurrent_calls                  .    .    .    .    .    .   ok    .       .       .
max_wait_duration                     .    .    .   ok    .    .    .    .       .       .
max_waiting                           .    .    .   ok    .    .   ok    .       .       .
timeout                               .    .    .    .    .    .   ok    .       .       .
breaker                               .    .    .    .    .    .   ok    .       .       .
""",
    Guard.call: """
timeout                               .    .    .    .    .    .   ok    .       .       .
""",
    Guard.resize: """
max_concurrent_calls                  .    .    .    .    .    .    .    .       .       .
""",
    Bulkhead: """
name                                  .    .    .    .    .   ok    .    .       .       .
max_concurrent_calls                  .    .    .    .    .    .    .    .       .       .
max_wait_duration                     .    .    .   ok    .    .    .    .       .       .
max_waiting                           .    .    .   ok    .    .   ok    .       .       .
listeners                             .    .    .    .    .    .    .    .       .       .
clock                                 .    .    .    .    .    .    .    .       .       .
""",
    CircuitBreaker: """
fail_max                              .    .    .    .    .    .    .    .       .       .
reset_timeout                         .    .    .   ok    .    .    .    .       .       .
success_threshold                     .    .    .    .    .    .    .    .       .       .
exclude                               .    .    .    .    .    .   ok    .       .       .
listeners                             .    .    .    .    .    .   ok    .       .       .
state_storage                         .    .    .    .    .    .   ok    .       .       .
name                                  .    .    .    .    .   ok   ok    .       .       .
throw_new_error_on_trip               .    .    .    .   ok    .    .    .       .       .
clock                                 .    .    .    .    .    .    .    .       .       .
""",
    RetryBudget: """
ratio                                 .    .    .   ok    .    .    .    .       .       .
minimum_per_second                    .    .    .   ok    .    .    .    .       .       .
clock                                 .    .    .    .    .    .    .    .       .       .
""",
    retrying: """
attempts                              .    .    .    .    .    .    .    .       .       .
wait                                  .    .    .    .    .    .   ok    .       .       .
budget                                .    .    .    .    .    .   ok    .       .       .
on                                    .    .    .    .    .    .   ok    .       .       .
random                                .    .    .    .    .    .    .    .       .       .
""",
    deadline: """
seconds                               .    .   ok   ok    .    .    .    .       .       .
clock                                 .    .    .    .    .    .    .    .       .       .
""",
    guarded: """
timeout                               .    .    .    .    .    .   ok    .       .       .
retry                                 .    .    .    .    .    .   ok    .       .       .
fallback                              .    .    .    .    .    .   ok    .       .       .
criticality                           .    .    .    .    .    .   ok    .       .       .
""",
    protect: """
name                                  .    .    .    .    .   ok   ok    .       .       .
max_concurrent_calls                  .    .    .    .    .    .   ok    .       .       .
max_wait_duration                     .    .    .   ok    .    .    .    .       .       .
max_waiting                           .    .    .   ok    .    .   ok    .       .       .
timeout                               .    .    .    .    .    .   ok    .       .       .
breaker                               .    .    .    .    .    .   ok    .       .       .
listeners                             .    .    .    .    .    .    .    .       .       .
clock                                 .    .    .    .    .    .    .    .       .       .
random                                .    .    .    .    .    .    .    .       .       .
""",
    protected_engine: """
leak_after                            .    .    .    .    .    .   ok    .       .       .
max_idle_hold                         .    .    .    .    .    .   ok    .       .       .
""",
    django_database: """
leak_after                            .    .    .    .    .    .   ok    .       .       .
max_idle_hold                         .    .    .    .    .    .   ok    .       .       .
""",
    holding: """
seconds                               .    .    .    .    .    .    .    .       .       .
""",
}
SETTINGS = [
    pytest.param(subject, *row.split(maxsplit=1), id=f"{subject.__qualname__}-{row.split()[0]}")
    for subject, table in TABLES.items()
    for row in table.strip().splitlines()
]

ONE_SETTING = {deadline, Guard.call, Guard.resize, holding}

numbers = itertools.count(1)


def give(subject, **settings):
    """Makes or calls the subject with these settings, and whatever else it cannot do without."""
    if subject in {Guard, Bulkhead}:
        subject(**{"name": "db", "max_concurrent_calls": 1} | settings)
    elif subject in {Guard.call, Guard.resize, Guard.compartment}:
        needed = {"name": f"part {next(numbers)}"} if subject is Guard.compartment else {}
        subject(Guard("db", max_concurrent_calls=5), **needed | settings)
    elif subject is deadline:
        with deadline(**{"seconds": 1} | settings):
            pass
    elif subject is guarded:
        guarded(Guard("db", max_concurrent_calls=1), **settings)
    elif subject is protect:
        for target in (
            sqlalchemy.create_engine("sqlite://", poolclass=sqlalchemy.QueuePool),
            fakeredis.FakeRedis(),
        ):
            protect(target, **settings).detach()
    else:
        subject(**settings)


@pytest.mark.parametrize(("subject", "setting", "cells"), SETTINGS)
def test_a_setting_is_accepted_by_rule_or_refused_by_name(subject, setting, cells):
    """C1: one kind of error, raised where the value is given, which says what is allowed."""
    assert len(COLUMNS.split()) == len(VALUES) == len(cells.split())
    for value, cell in zip(VALUES, cells.split(), strict=True):
        if cell == "ok":
            give(subject, **{setting: value})
            continue
        with pytest.raises(ConfigurationError, match=rf"\b{setting}(?:'\])? must be .+, got ") as refusal:
            give(subject, **{setting: value})
        assert len(str(refusal.value)) < 300, "however long the value"


@pytest.mark.parametrize("subject", [subject for subject in TABLES if subject is not guarded])
def test_all_faults_of_one_object_are_told_together(subject):
    """C6: nobody has to mend one setting to hear of the next."""
    settings = [row.split()[0] for row in TABLES[subject].strip().splitlines()]
    if subject in {Guard.compartment, protect}:
        settings.remove("max_concurrent_calls")  # judged first, by what the guard or the pool has
    with pytest.raises(ConfigurationError) as refusal:
        give(subject, **dict.fromkeys(settings, timedelta(seconds=1)))
    for setting in settings:
        assert re.search(rf"\b{setting}(?:'\])? must be", str(refusal.value))


@pytest.mark.parametrize(
    "subject", [subject for subject in TABLES if subject not in ONE_SETTING | {django_database}]
)
def test_a_misspelt_setting_is_refused_and_the_nearest_named(subject):
    """C2: for everything that has more settings than can be got wrong by position."""
    for row in TABLES[subject].strip().splitlines():
        setting = row.split()[0]
        misspelt = setting[:-2] + setting[-1]
        with pytest.raises(ConfigurationError, match=f"no option '{misspelt}'; did you mean '{setting}'"):
            give(subject, **{misspelt: None})


SECRETS = {
    "long": "hunter2-" * 12,
    "long bytes": b"hunter2-" * 12,
    "url": "postgresql://app:hunter2@db.internal/shop",
    "address": "app:hunter2@db.internal",
    "dsn": "host=db.internal password=hunter2",
}


@pytest.mark.sampled
@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(("subject", "setting", "cells"), SETTINGS)
def test_a_text_is_shown_in_part_and_an_address_not_at_all(subject, setting, cells, secret):
    """C7: at most 40 characters, also of the name that the message begins with."""
    given = SECRETS[secret]
    kept = cells.split()[5] == "ok" and isinstance(given, str)  # a name is a text
    with pytest.raises(ConfigurationError) if not kept else contextlib.nullcontext() as refusal:
        give(subject, **{setting: given})
    if refusal is not None:
        shown = str(refusal.value)
        assert shown.count("hunter2") <= (5 * (1 + (setting == "name")) if secret.startswith("long") else 0)
        assert "internal" not in shown
    if setting == "name" and secret not in {"long", "long bytes"}:
        with pytest.raises(ConfigurationError) as refusal:
            give(subject, name=given, **{"fail_max" if subject is CircuitBreaker else "max_waiting": -1})
        assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize("subject", [Guard, Guard.compartment, protect])
def test_a_misspelt_setting_shows_as_little(subject):
    """A name of an option may be the value, by mistake."""
    with pytest.raises(ConfigurationError, match="has no option") as refusal:
        give(subject, **{SECRETS["url"]: 1})
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize("make", [Guard, Bulkhead])
def test_a_name_has_at_most_200_characters(make):
    """It is a label of metrics and stands in every line of the log."""
    assert make("n" * 200, max_concurrent_calls=1).name == "n" * 200
    for name in ("n" * 201, ""):
        with pytest.raises(ConfigurationError, match="name must be a text of 1 to 200 characters") as refusal:
            make(name, max_concurrent_calls=1)
        assert "n" * 41 not in str(refusal.value)


class Base(sqlalchemy.orm.DeclarativeBase):
    """A service's own."""


def _flask_sqlalchemy():
    """As Flask-SQLAlchemy's ``db``, which is of no class of SQLAlchemy's."""
    return type("SQLAlchemy", (), {"__module__": "flask_sqlalchemy.extension"})()


@pytest.mark.parametrize(
    "target",
    [
        sqlalchemy.orm.Session,
        sqlalchemy.orm.Session(),
        sqlalchemy.orm.sessionmaker(),
        sqlalchemy.orm.scoped_session(sqlalchemy.orm.sessionmaker()),
        sqlalchemy.ext.asyncio.AsyncSession,
        sqlalchemy.ext.asyncio.async_sessionmaker(),
        sqlalchemy.Connection,
        Base,
        Base.metadata,
        _flask_sqlalchemy(),
        type(_flask_sqlalchemy()),
    ],
    ids=lambda target: getattr(target, "__name__", type(target).__name__),
)
def test_protect_says_to_pass_the_engine(target):
    """What has an engine is not it."""
    with pytest.raises(ConfigurationError, match="pass its engine"):
        protect(target)


def test_protect_says_to_pass_a_live_object_and_not_its_class():
    """Classes are nothing to guard."""
    for cls in (sqlalchemy.Engine, sqlalchemy.ext.asyncio.AsyncEngine):
        with pytest.raises(ConfigurationError, match=r"the class \w+ cannot be guarded; pass an engine"):
            protect(cls)
    with pytest.raises(ConfigurationError, match="the class Redis cannot be guarded; pass a client"):
        protect(Redis)
    with pytest.raises(ConfigurationError, match="the class Pool cannot be guarded; pass a pool, as"):
        protect(asyncpg.Pool)
    with pytest.raises(ConfigurationError, match="the class Connection cannot be guarded; pass its pool"):
        protect(psycopg.Connection)
    engine = sqlalchemy.create_engine("sqlite://")
    with engine.connect() as connection, pytest.raises(ConfigurationError, match="pass its engine"):
        protect(connection)
    engine.dispose()


def test_rules_that_are_iterables_are_read_once():
    """What is checked is what is used."""
    breaker = CircuitBreaker(exclude=(kind for kind in [LookupError]), listeners=iter([print]))
    assert breaker.excluded_exceptions == (LookupError,)
    assert breaker.listeners == (print,)
    with contextlib.suppress(LookupError):
        breaker.call({}.__getitem__, "missing")
    assert breaker.fail_counter == 0


@pytest.mark.parametrize(
    "telling",
    ["redis://:hunter2@cache.internal/0", Redis(host="cache.internal", password="hunter2"), ["hunter2"]],
    ids=["url", "client", "list"],
)
def test_a_message_tells_no_password_and_no_host(telling):
    """C7: somebody gives the wrong thing, and its text ends up in the log."""
    for setting in ("state_storage", "clock", "fail_max"):
        with pytest.raises(ConfigurationError, match=f"{setting} must be") as refusal:
            CircuitBreaker(**{setting: telling})
        assert "hunter2" not in str(refusal.value)
        assert "internal" not in str(refusal.value)


def test_the_misspelt_one_of_several_options_is_named():
    """The others are right."""

    def protect_all(*, guards, timeout): ...

    with pytest.raises(ConfigurationError, match="has no option 'timeuot'; did you mean 'timeout'"):
        refuse_unknown("protect_all", ["guards", "timeuot"], protect_all)
    refuse_unknown("protect_all", ["guards", "timeout"], protect_all)


@pytest.mark.parametrize("value", [0, 1, "yes", None])
def test_a_switch_is_true_or_false_and_nothing_else(value):
    """1 may be meant as a number."""
    faults = Faults("pool")
    faults.flag("ask_server", value)
    with pytest.raises(ConfigurationError, match=r"ask_server.* True or False"):
        faults.raise_if_any()
    faults = Faults("pool")
    faults.flag("ask_server", True)
    faults.flag("ask_server", False)
    faults.raise_if_any()
