"""Errors of a guard that are the driver's, too: code for those handles them, and the driver does not."""

from __future__ import annotations

import copy
import pickle

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from sqlalchemy import event
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from guardrails import (
    BulkheadFullError,
    CallTimeoutError,
    CircuitOpenError,
    CommitUnknownError,
    ConfigurationError,
    DeadlineSpentError,
    RejectedError,
    ShedError,
    deadline,
    protect,
)
from guardrails.integrations.asgi import GuardrailsMiddleware
from guardrails.integrations.redis._errors import DRIVER_ERRORS as REDIS
from guardrails.integrations.sqlalchemy._errors import DRIVER_ERRORS as SQLALCHEMY
from support.asgi_client import ask, raising
from support.polling import poll
from support.redis_lab import QUIET, frozen
from support.sql_lab import on_postgres

AS_DRIVER = {"raise_as": "driver", "breaker": QUIET}

MADE = [
    pytest.param(errors, kind(*args), id=f"{name} {kind.__name__}")
    for name, errors in (("redis", REDIS), ("sqlalchemy", SQLALCHEMY))
    for kind, args in [
        *((errors.rejected[reason], ("db", reason, 0.5)) for reason in errors.rejected),
        (errors.timeout, ("db", 0.3)),
        (errors.commit_unknown, ("db", 0.3)),
    ]
]

REFUSALS = [CircuitOpenError, BulkheadFullError, DeadlineSpentError, ShedError]
OWN = [*REFUSALS, CallTimeoutError, CommitUnknownError]


@pytest.mark.parametrize(("errors", "error"), MADE)
def test_each_error_is_both_and_survives_every_way_to_rebuild_it(errors, error):
    """Pickled, copied or rebuilt from its args it is the same, and it reads as the plain one does."""
    plain = next(kind for kind in OWN if kind.__name__ == type(error).__name__)
    base = redis.RedisError if errors is REDIS else OperationalError
    assert isinstance(error, plain)
    assert isinstance(error, base)
    assert str(error) == str(plain(*error.args))
    for again in (
        pickle.loads(pickle.dumps(error)),
        copy.copy(error),
        copy.deepcopy(error),
        type(error)(*error.args),
    ):
        assert type(again) is type(error)
        assert again.args == error.args
        assert str(again) == str(error)
    assert repr(error) == repr(plain(*error.args))


@pytest.mark.parametrize("errors", [REDIS, SQLALCHEMY], ids=["redis", "sqlalchemy"])
def test_what_redis_py_and_sqlalchemy_read_of_their_errors_is_there(errors):
    """Handlers and reporters read more than the text."""
    for kind in {*errors.rejected.values(), errors.timeout, errors.commit_unknown}:
        error = kind("db", 0.3) if issubclass(kind, CallTimeoutError) else kind("db", "circuit_open", None)
        if errors is REDIS:
            assert error.status_code is None
            assert error.error_type.value
        else:
            assert error.orig is error.statement is error.params is None
            assert error.connection_invalidated is False
            error.add_detail("more")
            assert error.detail == ["more"]


def test_redis_py_tries_no_refusal_again_by_its_kind():
    """A refusal is neither a ConnectionError nor a TimeoutError of redis-py; a timeout is the latter."""
    for kind in REDIS.rejected.values():
        assert not issubclass(kind, redis.ConnectionError | redis.TimeoutError | OSError)
    assert issubclass(REDIS.timeout, redis.TimeoutError)


@pytest.mark.parametrize("value", ["drivers", "", "guardrails", True, 3, ["driver"]])
def test_another_value_is_refused_in_words(value):
    """The error names the setting and what is allowed, and nothing was attached."""
    client = redis.Redis()
    with pytest.raises(ConfigurationError, match="raise_as must be None or 'driver', got "):
        protect(client, raise_as=value)
    protect(client, raise_as=None).detach()


# --- Redis -------------------------------------------------------------------------------------


def test_redis_errors_stay_our_own_unless_asked(cache, valkey):
    """The default."""
    cache.protect(guard={"timeout": 0.2, "breaker": QUIET})
    cache.do(lambda client: client.ping())
    with frozen(valkey), pytest.raises(CallTimeoutError) as caught:
        cache.do(lambda client: client.get("key"))
    assert not isinstance(caught.value, redis.RedisError)
    cache.guard.force_open()
    with pytest.raises(CircuitOpenError) as caught:
        cache.do(lambda client: client.get("key"))
    assert not isinstance(caught.value, redis.RedisError)


def test_redis_refusals_and_timeouts_are_redis_errors(cache, valkey):
    """Each kind of refusal, and a timeout; their own names and kinds stay."""
    guard = cache.protect(guard=AS_DRIVER | {"timeout": 0.2}, max_connections=1)
    cache.do(lambda client: client.ping())
    with frozen(valkey), pytest.raises(redis.TimeoutError) as caught:
        cache.do(lambda client: client.get("key"))
    assert isinstance(caught.value, CallTimeoutError)
    with deadline(1e-9), pytest.raises(redis.RedisError) as caught:
        cache.do(lambda client: client.get("key"))
    assert isinstance(caught.value, DeadlineSpentError)
    held = cache.finish(cache.pool.get_connection)
    with pytest.raises(redis.RedisError) as caught:
        cache.do(lambda client: client.get("key"))
    assert isinstance(caught.value, BulkheadFullError)
    cache.finish(lambda: cache.pool.release(held))
    guard.force_open()
    with pytest.raises(redis.RedisError) as caught:
        cache.do(lambda client: client.get("key"))
    assert isinstance(caught.value, CircuitOpenError)


@pytest.mark.parametrize("work", ["command", "transaction", "single connection"])
def test_redis_py_does_not_try_again(cache, valkey, work):
    """A Retry for everything that is a RedisError sees neither a refusal nor a timeout."""
    policy = redis.asyncio.retry.Retry if cache.is_async else redis.retry.Retry
    retry = policy(NoBackoff(), 3, supported_errors=(redis.RedisError,))
    options = {"single_connection_client": True} if work == "single connection" else {}
    guard = cache.protect(guard=AS_DRIVER | {"timeout": 0.2}, retry=retry, **options)

    def ask(client):
        return client.pipeline().get("key").execute() if work == "transaction" else client.get("key")

    cache.do(ask)
    before = guard.snapshot()
    with frozen(valkey), pytest.raises(redis.TimeoutError):
        cache.do(ask)
    assert guard.snapshot().failed == before.failed + 1
    guard.force_open()
    with pytest.raises(CircuitOpenError):
        cache.do(ask)
    assert guard.snapshot().rejected["circuit_open"] == 1


def test_a_subscriber_does_not_try_again_either(cache):
    """redis-py's own retries are on for subscribers."""
    policy = redis.asyncio.retry.Retry if cache.is_async else redis.retry.Retry
    retry = policy(NoBackoff(), 3, supported_errors=(redis.RedisError,))
    guard = cache.protect(guard=AS_DRIVER, retry=retry)
    listener = cache.client.pubsub()
    cache.finish(lambda: listener.subscribe("news"))
    cache.finish(listener.connection.disconnect)
    guard.force_open()
    with pytest.raises(CircuitOpenError):
        cache.finish(lambda: listener.get_message(timeout=None))
    assert guard.snapshot().rejected["circuit_open"] == 1
    cache.finish(listener.aclose if cache.is_async else listener.close)


def test_compartments_raise_as_their_guard_does(cache):
    """Declared ones, those made of those, and those that form by themselves."""
    guard = cache.protect(guard=AS_DRIVER | {"compartments": "auto"})
    part = guard.compartment("reports")
    part.force_open()
    with pytest.raises(redis.RedisError) as caught, part.call():
        pass
    assert isinstance(caught.value, CircuitOpenError)
    assert (caught.value.guard, caught.value.compartment) == (guard.name, "reports")
    guard.force_open()
    with pytest.raises(redis.RedisError) as caught:
        cache.do(lambda client: client.get("key"))
    assert isinstance(caught.value, CircuitOpenError)


def test_fail_open_code_fails_open(cache):
    """The hand-written fallback that the option is for."""
    cache.protect(guard=AS_DRIVER)
    cache.guard.force_open()

    async def on_loop(client):
        try:
            return await client.get("key")
        except redis.RedisError:
            return "asked the database"

    def in_thread(client):
        try:
            return client.get("key")
        except redis.RedisError:
            return "asked the database"

    assert cache.do(on_loop if cache.is_async else in_thread) == "asked the database"


# --- SQLAlchemy --------------------------------------------------------------------------------


def test_sql_errors_stay_our_own_unless_asked(lab):
    """The default."""
    lab.protect(guard={"timeout": 0.2, "breaker": QUIET})
    with pytest.raises(CallTimeoutError) as caught:
        lab.query("select count(*) from pg_sleep(5)")
    assert not isinstance(caught.value, SQLAlchemyError)
    lab.guard.force_open()
    with pytest.raises(CircuitOpenError) as caught:
        lab.query("select 1")
    assert not isinstance(caught.value, SQLAlchemyError)


def test_sql_refusals_and_timeouts_are_operational_errors(lab):
    """They come unwrapped, with nothing of the statement, and only their connection is lost."""
    lab.protect(guard=AS_DRIVER | {"timeout": 1.0}, pool_size=2, max_overflow=0)
    lab.all([lambda: lab.query("select count(*) from pg_sleep(0.1)")] * 2)
    idle = lab.server_side("true")
    assert idle == 2
    handled = []
    engine = getattr(lab.engine, "sync_engine", lab.engine)
    event.listen(engine, "handle_error", handled.append)
    with pytest.raises(OperationalError) as caught:
        lab.query("select count(*) from pg_sleep(5)", timeout=0.3)
    assert isinstance(caught.value, CallTimeoutError)
    assert type(caught.value) is SQLALCHEMY.timeout
    assert "pg_sleep" not in str(caught.value)
    poll(lambda: lab.server_side("true") <= 2, "the stopped connection is closed")
    assert lab.server_side("true") >= 1
    lab.guard.force_open()
    with pytest.raises(OperationalError) as caught:
        lab.query("select 1")
    assert isinstance(caught.value, CircuitOpenError)
    assert type(caught.value) is SQLALCHEMY.rejected["circuit_open"]
    assert [context.is_disconnect for context in handled] == [True]
    lab.guard.reset()
    assert lab.query("select 1") == 1


@on_postgres
def test_an_unknown_commit_is_an_operational_error(lab):
    """And a CommitUnknownError still, which is never tried again."""
    lab.aside("drop table if exists ledger_of_raise_as", "create table ledger_of_raise_as (n int)")
    lab.protect(guard=AS_DRIVER | {"timeout": 0.4})
    with lab.backend.slow_commits("ledger_of_raise_as") as begin:
        begin()

        def work(session):
            session.execute("insert into ledger_of_raise_as values (1)")
            session.commit()

        with pytest.raises(OperationalError) as caught:
            lab.run(work)
    assert isinstance(caught.value, CommitUnknownError)
    lab.aside("drop table ledger_of_raise_as")


def test_a_full_sql_pool_is_an_operational_error(lab):
    """Also in a compartment, which raises as its guard does."""
    lab.protect(guard=AS_DRIVER, pool_size=1, max_overflow=0)
    part = lab.guard.compartment("reports")

    def inside(session):
        del session
        for query in (lambda: lab.query("select 1"), lambda: lab.call(part, lambda: lab.query("select 1"))):
            with pytest.raises(OperationalError) as caught:
                query()
            assert isinstance(caught.value, BulkheadFullError)

    if hasattr(lab, "runner"):
        results = lab.all([lambda: lab.query("select count(*) from pg_sleep(0.5)")] * 2)
        assert sum(isinstance(result, OperationalError) for result in results) == 1
        return
    lab.run(inside)


# --- HTTP --------------------------------------------------------------------------------------


@pytest.mark.parametrize("errors", [REDIS, SQLALCHEMY], ids=["redis", "sqlalchemy"])
@pytest.mark.parametrize("status", [503, 504])
def test_the_middleware_answers_as_before(errors, status):
    """503 for a refusal, 504 for a timeout, whatever else they are."""

    refusal = errors.rejected["circuit_open"]("db", "circuit_open", 1.0)
    error = refusal if status == 503 else errors.timeout("db", 0.3)
    assert ask(GuardrailsMiddleware(raising(error))).status == status


def test_the_errors_of_both_are_refusals_and_timeouts_to_other_guards():
    """A guard around the call takes them for no evidence, as it takes the plain ones."""
    for errors in (REDIS, SQLALCHEMY):
        assert all(issubclass(kind, RejectedError) for kind in errors.rejected.values())
        assert issubclass(errors.commit_unknown, errors.timeout)
