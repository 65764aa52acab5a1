"""Transactions that end around their deadline: what is reported is so, and an order to stop hits its own.

With two-phase commits, isolation levels, listeners, cancel orders that arrive late, and a foreign pool.
"""

from __future__ import annotations

import contextlib
import functools
import gc
from collections import Counter

import pytest
from sqlalchemy import event, text

from guardrails import CallTimeoutError, CommitUnknownError, DeadlineSpentError, deadline
from guardrails.testing.proxy import FaultProxy
from support.foreign_pool import foreign_pool
from support.prepared import names_of_prepared, tidy
from support.sql_lab import BACKENDS, lab_with

FEW = pytest.param(90, id="few")
ALL = pytest.param(3000, id="all", marks=[pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)])
"""With each driver."""

each_count = pytest.mark.parametrize("count", [FEW, ALL])

LIMIT = 0.08
"""Seconds of a transaction; more on a machine that is too busy to end any in time."""
WIDTH = 6


pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def races(lab):
    """The lab, with an empty table; afterwards nothing of it is left, not even prepared."""
    lab.limit = LIMIT
    lab.aside("drop table if exists races", "create table races (n int)")
    yield lab
    lab.dispose()
    gc.collect()  # a driver whose connect was cancelled, such as an order's, leaves a socket in a cycle
    lab.until(lambda: lab.server_side("true") == 0, "the test's connections are gone from the server")
    tidy(lab)
    lab.aside("drop table races")


def batches(lab, count, work):
    """Runs transactions, a few at once; yields the numbers of each few, and what they came to."""
    for start in range(0, count, WIDTH):
        numbers = range(start, start + WIDTH)
        outcomes = lab.all([functools.partial(work, number) for number in numbers])
        stopped = sum(isinstance(outcome, Exception) for outcome in outcomes)
        if stopped >= WIDTH - WIDTH // 3:  # a third may be innocent
            lab.limit *= 1.3
        elif stopped <= WIDTH // 3:
            lab.limit = max(LIMIT, lab.limit / 1.3)
        yield list(zip(numbers, outcomes, strict=True))


def rows(lab):
    """The committed rows."""
    with lab.backend.connect() as connection:
        cursor = connection.cursor()
        cursor.execute("select n from races")
        return Counter(n for (n,) in cursor.fetchall())


def settled(lab):
    """The committed rows and the prepared transactions, when no statement of the test's runs any more."""
    lab.until(lambda: lab.running() == 0, "nothing runs on the server")
    return rows(lab), names_of_prepared(lab)


def length(lab, number):
    """Seconds of a statement: some leave time for what follows, some none, and some little."""
    return lab.limit * (0.44 + number % 8 * 0.09)


def insert(lab, session, number):
    """Commits a row, if that can be done within the limit."""
    with deadline(lab.limit):
        session.execute(f"insert into races values ({number})")
        session.execute(f"select {number} from pg_sleep({length(lab, number)})")
        session.commit()
        return number


def ended_well(lab, idle):
    """Every slot is back, and no connection beyond the pool's is left."""
    assert lab.guard.snapshot().in_use == 0
    lab.until(lambda: lab.server_side("true") <= idle, "only the pool's connections are left")


@each_count
def test_two_phase_transactions_around_their_deadline(races, count):
    """What is reported as committed is there, what is not is not; only a stopped commit is unknown."""
    races.protect(pool_size=4, max_overflow=2, guard={"breaker": None, "max_wait_duration": 30})
    ended = {}
    tally = Counter()

    def work(number):
        ended[number] = "begun"

        def transact(session):
            connection = session.connection
            with deadline(races.limit):
                return phases(session, connection, connection.begin_twophase(f"race{number}"))

        def phases(session, connection, transaction):
            try:
                connection.execute(text(f"insert into races values ({number})"))
                session.execute(f"select {number} from pg_sleep({length(races, number)})")
                transaction.prepare()
                if number % 5:
                    ended[number] = "committing"
                    transaction.commit()
                    ended[number] = "committed"
                else:
                    ended[number] = "rolling back"
                    transaction.rollback()
                    ended[number] = "rolled back"
            finally:
                if ended[number] == "begun" and not connection.invalidated:
                    with contextlib.suppress(CallTimeoutError):
                        transaction.rollback()
                        ended[number] = "rolled back"
            return number

        return races.run(transact)

    for batch in batches(races, count, work):
        there, prepared = settled(races)
        for number, outcome in batch:
            how, name = ended[number], f"race{number}"
            tally[how if isinstance(outcome, int) else f"{how}: {type(outcome).__name__}"] += 1
            if outcome == number:
                assert how in {"committed", "rolled back"}
                assert there[number] == (how == "committed")
                assert name not in prepared
            elif isinstance(outcome, CommitUnknownError):
                assert how == "committing"
                assert there[number] + (name in prepared) <= 1
            else:
                assert isinstance(outcome, CallTimeoutError | DeadlineSpentError), outcome
                assert there[number] == 0
                assert how != "rolled back" or name not in prepared
        tidy(races)
    print(f"{races.driver}: {count} two-phase transactions: {dict(tally)}")
    assert tally["committed"] > 0
    assert sum(tally.values()) - tally["committed"] - tally["rolled back"] > 0
    ended_well(races, 6)


@each_count
def test_transactions_of_an_isolation_level_around_their_deadline(races, count):
    """A level that one checkout asks for reaches no other; rows are there if they are reported."""
    races.protect(pool_size=4, max_overflow=2, guard={"breaker": None, "max_wait_duration": 30})
    question = races.backend.say(
        "show transaction_isolation" if on_postgresql(races) else "select @@tx_isolation"
    )
    usual = races.query(question)

    def ask(connection, *_):
        cursor = connection.cursor()
        cursor.execute("select 1")
        cursor.fetchall()
        cursor.close()
        connection.rollback()

    event.listen(getattr(races.engine, "sync_engine", races.engine), "checkout", ask)
    tally = Counter()

    def work(number):
        if number % 3 == 0:
            return races.query(question)  # has all the time it wants

        def transact(session):
            session.connection.execution_options(isolation_level="SERIALIZABLE")
            return insert(races, session, number)

        return races.run(transact)

    for batch in batches(races, count, work):
        there, _ = settled(races)
        for number, outcome in batch:
            tally[type(outcome).__name__] += 1
            if number % 3 == 0:
                assert outcome == usual
            elif outcome == number:
                assert there[number] == 1
            elif not isinstance(outcome, CommitUnknownError):
                assert isinstance(outcome, CallTimeoutError | DeadlineSpentError), outcome
                assert there[number] == 0
    print(f"{races.driver}: {count} transactions of a level: {dict(tally)}")
    assert tally["int"] > 0
    assert tally["int"] + tally["str"] < count
    ended_well(races, 6)


def on_postgresql(lab):
    return isinstance(lab.backend, BACKENDS["postgres"])


pool_lab = lab_with(["psycopg", "psycopg_async"])


@each_count
def test_transactions_of_a_foreign_pool_around_their_deadline(pool_lab, count):
    """Each caller gets its own answer, and late cancel requests stop no later user of that pool."""
    lab = pool_lab
    lab.limit = LIMIT
    lab.aside("drop table if exists races", "create table races (n int)")
    late = 0
    with FaultProxy(lab.server.port) as wire:
        lab.url = functools.partial(lab.url, wire.port)
        with foreign_pool(lab, size=WIDTH, slots=WIDTH):
            lab.engine = lab.make_engine()
            lab.guard = lab.guard_engine(max_wait_duration=30)

            def work(number):
                if number % 3 == 0:
                    return lab.query(f"select {number} from pg_sleep(0.02)")  # an innocent one

                return lab.run(lambda session: insert(lab, session, number))

            for batch in batches(lab, count, work):
                there, _ = settled(lab)
                for number, outcome in batch:
                    if outcome != number:
                        assert number % 3, outcome
                        assert isinstance(outcome, CallTimeoutError | DeadlineSpentError), outcome
                        late += 1
                    if number % 3 and not isinstance(outcome, CommitUnknownError):
                        assert there[number] == (outcome == number)
            print(f"{lab.driver}: {count} transactions of a foreign pool, {late} of them stopped")
            assert 0 < late < count
            assert lab.guard.snapshot().in_use == 0
    lab.aside("drop table races")


LATE_LIMIT, DELAY = 0.15, 0.04


def innocent(lab, wire, count):
    """Runs statements that are stopped beside others, whose answers are right; the orders come late."""
    lab.limit, stopped = LIMIT, 0

    def work(number):
        if number % 2:
            # psycopg2's order finds nothing behind a proxy, so this ends by itself.
            return lab.query("select pg_sleep(2)", timeout=LATE_LIMIT)
        return lab.query(f"select {number} from pg_sleep(0.1)", timeout=9)

    for batch in batches(lab, count, work):
        for number, outcome in batch:
            if number % 2:
                assert isinstance(outcome, CallTimeoutError), outcome
                stopped += 1
            else:
                assert outcome == number
        # The next callers, while the last cancel requests are still on their way.
        wire.delay(DELAY, "server")
    print(f"{lab.driver}: {stopped} orders {DELAY} s late, and {count - stopped} innocent statements right")


few_orders = pytest.mark.parametrize(
    "count",
    [pytest.param(18, id="few"), pytest.param(600, id="all", marks=[pytest.mark.slow, pytest.mark.long])],
)


@few_orders
def test_late_cancel_requests_stop_no_other_statement(lab, count):
    """An order that reaches the server late finds its own statement there, or nothing."""
    with FaultProxy(lab.server.port) as wire:
        lab.url = functools.partial(lab.url, wire.port)
        lab.protect(pool_size=4, max_overflow=2, guard={"breaker": None, "max_wait_duration": 30})
        innocent(lab, wire, count)
        wire.heal()
        ended_well(lab, 6)
        lab.dispose()


@few_orders
def test_late_cancel_requests_stop_no_other_statement_of_a_foreign_pool(pool_lab, count):
    """Likewise where a psycopg_pool hands the connections out."""
    lab = pool_lab
    with FaultProxy(lab.server.port) as wire:
        lab.url = functools.partial(lab.url, wire.port)
        with foreign_pool(lab, size=WIDTH, slots=WIDTH):
            lab.engine = lab.make_engine()
            lab.guard = lab.guard_engine(max_wait_duration=30)
            innocent(lab, wire, count)
            wire.heal()
            assert lab.guard.snapshot().in_use == 0
