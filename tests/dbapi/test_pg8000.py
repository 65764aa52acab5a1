"""pg8000: its cancel request, also over TLS, and a connection that would give wrong answers."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading

import pg8000
import pytest
import trustme
from sqlalchemy import String, TypeDecorator, bindparam, create_engine, text
from sqlalchemy.exc import PendingRollbackError, StatementError

from guardrails import CallTimeoutError, DeadlineSpentError, deadline, protect
from guardrails._dbapi.drivers.pg8000 import PG8000
from guardrails.testing.proxy import FaultProxy
from support.sql_lab import those

KEY = struct.pack("!ii", 4711, 12345)
CANCEL = struct.pack("!ii", 16, 80877102) + KEY


class Session:
    """A connection of pg8000, as far as a cancel request reads it."""

    def __init__(self, own):
        self._usock = own
        self._backend_key_data = KEY


@contextlib.contextmanager
def server(answer):
    """A server that lets ``answer(connection)`` answer the second of its connections; yields the first."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        first = socket.create_connection(listener.getsockname())
        accepted = listener.accept()[0]

        def serve():
            with listener.accept()[0] as connection:
                answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield first, accepted
        finally:
            thread.join(5)
            first.close()
            accepted.close()


def test_the_cancel_request_has_the_key_of_the_session():
    heard = []
    driver = PG8000()
    with server(lambda connection: heard.append(connection.recv(100))) as (first, _):
        driver.cancel(driver.cancel_target(Session(first)), 5.0)
    assert (heard, driver.failed_cancels) == ([CANCEL], 0)


def test_the_key_of_an_encrypted_session_is_sent_encrypted():
    """It asks for TLS first, as the connection itself did, and checks the same certificate."""
    authority = trustme.CA()
    theirs, ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("db.test").configure_cert(theirs)
    authority.configure_trust(ours)
    heard, driver = [], PG8000()

    def answer(connection):
        heard.append(connection.recv(8))
        connection.sendall(b"S")
        with theirs.wrap_socket(connection, server_side=True) as encrypted:
            heard.append(encrypted.recv(100))

    with server(answer) as (first, accepted):
        shaking = threading.Thread(
            target=lambda: accepts.append(theirs.wrap_socket(accepted, server_side=True))
        )
        accepts = []
        shaking.start()
        own = ours.wrap_socket(first, server_hostname="db.test")
        shaking.join(5)
        driver.cancel(driver.cancel_target(Session(own)), 5.0)
        own.close()
        accepts[0].close()
    assert (heard, driver.failed_cancels) == ([struct.pack("!ii", 8, 80877103), CANCEL], 0)


def test_the_key_is_not_sent_where_tls_is_refused_by_now():
    heard, driver = [], PG8000()
    target = None

    def answer(connection):
        heard.append(connection.recv(8))
        connection.sendall(b"N")
        heard.append(connection.recv(100))

    with server(answer) as (first, _):
        given = driver.cancel_target(Session(first))
        target = type(given)(given.family, given.address, given.key, ssl.create_default_context(), "db.test")
        driver.cancel(target, 5.0)
    assert (heard[1], driver.failed_cancels) == (b"", 1)
    assert str(KEY) not in repr(target)


def test_errors_without_a_code_are_the_sockets_or_the_callers():
    driver = PG8000()
    assert driver.failed(ConnectionResetError()) is True
    assert driver.failed(pg8000.InterfaceError("network error")) is True
    assert driver.failed(pg8000.ProgrammingError({"C": "57014"})) is True
    assert driver.failed(pg8000.ProgrammingError({"C": "23505"})) is False
    assert driver.failed(pg8000.InterfaceError("connection is closed")) is None
    assert driver.unsent(pg8000.InterfaceError("Only %s and %% are supported in the query."))


def test_calls_in_a_wrong_order_leave_the_connection_in_step():
    """Nothing was sent; after an error of its socket, or of a value, the answer to a part may be unread."""
    driver = PG8000()
    assert not driver.out_of_step(pg8000.ProgrammingError("no result set"))
    assert not driver.out_of_step(pg8000.ProgrammingError({"C": "23505"}))
    assert not driver.out_of_step(pg8000.InterfaceError("Cursor closed"))
    assert driver.out_of_step(pg8000.InterfaceError("network error"))
    assert driver.out_of_step(ConnectionResetError())
    assert driver.out_of_step(TypeError("no adapter"))


@those("pg8000")
def test_a_closed_connection_has_no_session_and_no_address(lab):
    lab.protect()
    driver = PG8000()
    with contextlib.closing(lab.engine.raw_connection()) as raw:
        own = raw.driver_connection
        assert driver.session_of(own) is not None
        own.close()
        assert (driver.session_of(own), driver.endpoint(own)) == (None, (None, None))
        raw.invalidate()


def test_settings_in_options_are_the_users():
    given = {"startup_params": {"options": "-c statement_timeout=1s", "work_mem": "1MB"}}
    offer = {"statement_timeout": "60000", "tcp_keepalives_idle": "30"}
    params = PG8000()._with_settings(pg8000.connect, given, offer)["startup_params"]
    assert params == {"tcp_keepalives_idle": "30", **given["startup_params"]}


@those("pg8000")
def test_a_parameter_that_cannot_be_sent_costs_the_connection_at_once(lab):
    """Later statements of the transaction fail; without that they would return the rows of earlier ones."""
    lab.protect(pool_size=1, max_overflow=0)
    session = lab.query("select pg_backend_pid()")

    def work(session):
        with pytest.raises(UnicodeEncodeError):
            session.connection.execute(text("select cast(:value as text)"), {"value": "\ud800"})
        with pytest.raises(PendingRollbackError):
            session.execute("select 42")

    lab.run(work)
    assert lab.query("select 43") == 43
    assert lab.query("select pg_backend_pid()") != session
    assert (lab.guard.snapshot().failed, lab.guard.snapshot().in_use) == (0, 0)


@those("pg8000")
def test_a_raw_connection_in_that_state_is_closed_at_once(lab):
    lab.protect(pool_size=1, max_overflow=0)
    session = lab.query("select pg_backend_pid()")
    with contextlib.closing(lab.engine.raw_connection()) as raw:
        cursor = raw.cursor()
        with pytest.raises(UnicodeEncodeError):
            cursor.execute("select %s", ("\ud800",))
        with pytest.raises(pg8000.InterfaceError, match=r"connection is closed|network error"):
            cursor.execute("select 'the rows of an earlier statement'")
    assert lab.query("select 43") == 43
    assert lab.query("select pg_backend_pid()") != session


@those("pg8000")
def test_an_error_for_which_nothing_was_sent_keeps_the_connection(lab):
    """A refusal, a missing value, a type that raises: the transaction goes on."""
    guard = lab.protect(pool_size=1, max_overflow=0)

    class Broken(TypeDecorator):
        impl, cache_ok = String, True

        def process_bind_param(self, value, dialect):
            raise ConnectionResetError(value)

    def work(session):
        execute = session.connection.execute
        execute(text("create temporary table kept (number int)"))
        for number, (error, sql, values, seconds) in enumerate(
            [
                (DeadlineSpentError, text("select 1"), {}, 0.0),
                (StatementError, text("select :value"), {}, 20.0),
                (
                    StatementError,
                    text("select :value").bindparams(bindparam("value", type_=Broken)),
                    {"value": 1},
                    20.0,
                ),
            ]
        ):
            execute(text("insert into kept values (:number)"), {"number": number})
            with deadline(seconds), pytest.raises(error):
                execute(sql, values)
            assert not session.connection.invalidated
        return execute(text("select count(*) from kept")).scalar()

    assert lab.run(work) == 3
    assert guard.snapshot().failed == 0


@those("pg8000")
def test_a_fetch_without_a_result_keeps_a_raw_connection(lab):
    lab.protect(pool_size=1, max_overflow=0)
    with contextlib.closing(lab.engine.raw_connection()) as raw:
        cursor = raw.cursor()
        cursor.execute("create temporary table kept (number int)")
        with pytest.raises(pg8000.ProgrammingError, match="unexecuted cursor"):
            cursor.fetchall()
        cursor.execute("insert into kept values (1)")
        cursor.execute("select number from kept")
        assert [tuple(row) for row in cursor.fetchall()] == [(1,)]
        assert raw.is_valid


def test_the_descriptor_of_a_lost_connection_is_closed_while_its_error_is_kept(postgres):
    """The frames of the error keep the file that was read."""
    with FaultProxy(postgres.port) as wire:
        engine = create_engine(f"postgresql+pg8000://postgres@127.0.0.1:{wire.port}/postgres")
        protect(engine, timeout=20)
        with engine.connect() as connection:
            connection.execute(text("select 1"))
            own = connection.connection.dbapi_connection._usock
            wire.hang()
            with pytest.raises(CallTimeoutError) as kept, deadline(0.2):
                connection.execute(text("select 2"))
        assert kept.value.__traceback__
        assert own.fileno() == -1
        engine.dispose()
