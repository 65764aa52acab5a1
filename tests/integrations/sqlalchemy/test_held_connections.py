"""A connection that code holds while it does other work is no leak: the line that holds it is named."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest
from fastapi import BackgroundTasks, Depends, FastAPI
from fastapi.responses import StreamingResponse
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from guardrails import protect
from guardrails.integrations import wsgi
from guardrails.integrations.asgi import GuardrailsMiddleware
from guardrails.integrations.sqlalchemy import pool_status
from support import wsgi_client
from support.asgi_client import ask, http
from support.polling import poll


@pytest.fixture
def engine(tmp_path):
    """A pool of one connection."""
    engine = create_engine(f"sqlite:///{tmp_path}/db", pool_size=1, max_overflow=0)
    protect(engine, name="db")
    yield engine
    engine.dispose()


class Pinned:
    """The `pool_status` at one moment inside a request."""

    def __init__(self, engine):
        self.engine = engine
        self.seen = []

    def look(self):
        """Asks from a thread of its own, as the housekeeper does."""
        asking = threading.Thread(target=lambda: self.seen.append(pool_status(self.engine)))
        asking.start()
        asking.join()

    def check(self, line):
        """Held across other work, at a line in the function that is named."""
        (status,) = self.seen
        (holder,) = status.holders
        assert (status.cause, holder.doing) == ("held_idle", "other_work")
        assert f" in {line}" in holder.now[0], holder.now
        assert "held across other work at " in str(status)
        assert "leak" not in str(status)
        assert pool_status(self.engine).holders == ()


def query_deep_down(session):
    """The three innermost lines of the application, which are kept of a checkout, end with it."""

    def first():
        return second()

    def second():
        return third()

    def third():
        return session.execute(text("select 1")).scalar()

    return first()


def serve(app, path="/"):
    """One request."""
    answer = ask(app, http(path))
    assert answer.raised is None
    assert answer.status == 200


def application(engine):
    """An application with a session for each request."""
    app = FastAPI()

    def get_session():
        with Session(engine) as session:
            yield session

    return app, Depends(get_session)


def test_streaming_response(engine):
    """A session that lives until a stream's end is held by its dependency."""
    pinned = Pinned(engine)
    app, session = application(engine)

    @app.get("/")
    def endpoint(session: Session = session):
        query_deep_down(session)

        def rows():
            pinned.look()
            yield b"1"

        return StreamingResponse(rows())

    serve(app)
    pinned.check("application.<locals>.get_session")


def test_server_sent_events(engine):
    """Likewise of events, from an asynchronous endpoint."""
    pinned = Pinned(engine)
    app, session = application(engine)

    @app.get("/")
    async def endpoint(session: Session = session):
        query_deep_down(session)

        async def events():
            await asyncio.to_thread(pinned.look)
            yield b"data: 1\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    serve(app)
    pinned.check("application.<locals>.get_session")


def test_background_task(engine):
    """A task that runs after the response holds what it was given."""
    pinned = Pinned(engine)
    app = FastAPI()

    def work(session):
        pinned.look()
        session.close()

    @app.get("/")
    def endpoint(tasks: BackgroundTasks):
        session = Session(engine)
        query_deep_down(session)
        tasks.add_task(work, session)
        return 1

    serve(app)
    pinned.check("test_background_task.<locals>.work")


def test_slow_call_to_another_service(engine):
    """Code whose helpers have run their queries holds the connection while it waits elsewhere."""
    pinned = Pinned(engine)

    def handle():
        with Session(engine) as session:
            query_deep_down(session)
            call_elsewhere()

    def call_elsewhere():
        pinned.look()

    worker = threading.Thread(target=handle)
    worker.start()
    worker.join()
    pinned.check("test_slow_call_to_another_service.<locals>.handle")


def test_generator_that_is_suspended(engine):
    """A generator in the middle of its block holds the connection, whatever code runs."""
    pinned = Pinned(engine)

    def rows():
        with engine.connect() as connection:
            query_deep_down(connection)
            yield 1

    generator = rows()
    first = threading.Thread(target=next, args=(generator,))
    first.start()
    first.join()
    pinned.look()
    generator.close()
    pinned.check("test_generator_that_is_suspended.<locals>.rows")


def test_asynchronous_generator(tmp_path):
    """An asynchronous one, too, whose first step ran in a task that has ended."""

    async def main():
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/db", pool_size=1, max_overflow=0)
        protect(engine, name="db")
        pinned = Pinned(engine)

        @contextlib.asynccontextmanager
        async def scope():
            async with AsyncSession(engine) as session:
                yield session

        manager = scope()
        session = await manager.__aenter__()
        await asyncio.create_task(session.execute(text("select 1")))
        await asyncio.to_thread(pinned.look)
        await manager.__aexit__(None, None, None)
        pinned.check("test_asynchronous_generator.<locals>.main")
        await engine.dispose()

    asyncio.run(main())


def test_forgotten_connection_is_a_leak(engine):
    """What no code holds any more is called a leak, even while others wait."""
    forgotten = []

    def leak():
        forgotten.append(engine.connect())

    thread = threading.Thread(target=leak)
    thread.start()
    thread.join()
    looked = Pinned(engine)
    looked.look()
    (status,) = looked.seen
    assert (status.cause, status.holders[0].doing, status.holders[0].now) == ("leak", "gone", ())
    forgotten.pop().close()


def test_request_that_is_under_way_holds_what_it_took(engine):
    """Inside a middleware's request a connection is not gone before the request is."""
    kept, seen = {}, []

    async def app(_scope, _receive, send):
        kept["session"] = await asyncio.to_thread(take)
        seen.append(await asyncio.to_thread(pool_status, engine))
        kept.pop("session").close()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def take():
        session = Session(engine)
        query_deep_down(session)
        return session

    serve(GuardrailsMiddleware(app))
    assert (seen[0].cause, seen[0].holders[0].doing) == ("held_idle", "other_work")


def reported(engine, caplog):
    """The line in the log about a connection that is held."""
    poll(lambda: any("nothing runs on it" in each.getMessage() for each in caplog.records), "a report")
    return next(line for each in caplog.records if "nothing runs on it" in (line := each.getMessage()))


@pytest.fixture
def impatient(tmp_path):
    """An engine whose held connections are reported at once."""
    engine = create_engine(f"sqlite:///{tmp_path}/db", pool_size=2, max_overflow=0)
    guard = protect(engine, name="db", leak_after=0.05)
    yield engine
    guard.detach()
    engine.dispose()


def test_the_log_names_the_dependency_of_a_slow_call(impatient, caplog):
    """A session that a dependency holds while the endpoint waits for another service is no leak."""
    app, session = application(impatient)
    lines, status = [], []

    @app.get("/slow/{item}")
    def endpoint(item: int, session: Session = session):
        query_deep_down(session)
        lines.append(reported(impatient, caplog))
        status.append(pool_status(impatient).holders[0].doing)
        return item

    serve(GuardrailsMiddleware(app), "/slow/1")
    assert status == ["other_work"]
    assert "test_held_connections.py" in lines[0]
    assert ", for /slow/{item}" in lines[0]
    assert "before" in lines[0]
    assert "close it in a with block" not in lines[0]


def test_the_log_names_the_dependency_of_a_stream(impatient, caplog):
    """Likewise of a stream: the line of its ``yield``, and what to do."""
    app, session = application(impatient)
    lines = []

    @app.get("/")
    def endpoint(session: Session = session):
        query_deep_down(session)

        def rows():
            lines.append(reported(impatient, caplog))
            yield b"1"

        return StreamingResponse(rows())

    serve(GuardrailsMiddleware(app))
    assert "in application.<locals>.get_session holds it across its yield" in lines[0]
    assert "close the session before a stream or a background task" in lines[0]


def test_the_log_calls_a_leak_a_leak(impatient, caplog):
    """A connection that a request has left in a global list, when the request is over."""
    app, kept = FastAPI(), []

    @app.get("/")
    def endpoint():
        kept.append(impatient.connect())
        return 1

    serve(GuardrailsMiddleware(app))
    assert "its code has ended and nothing that runs keeps it: close it in a with block" in reported(
        impatient, caplog
    )
    assert pool_status(impatient).holders[0].doing == "gone"
    kept.pop().close()


FORGOTTEN = []
"""Sessions that no code which runs refers to."""


@pytest.mark.parametrize("driver", ["sqlite3", "pure Python"])
def test_connection_that_an_earlier_request_of_the_thread_forgot_is_a_leak(
    tmp_path, caplog, monkeypatch, driver
):
    """The thread runs the same function for the next request, or a driver: neither holds the connection."""
    engine = create_engine(f"sqlite:///{tmp_path}/db", pool_size=3, max_overflow=0)
    guard = protect(engine, name="db", max_wait_duration=0)
    seen = []
    if driver == "pure Python":
        monkeypatch.setattr("guardrails._pool.holder_registry.in_driver", lambda _caller: True)

    def view(_environ, start_response):
        session = Session(engine)
        FORGOTTEN.append(session)
        try:
            session.execute(text("select 1"))
        finally:
            seen.append(pool_status(engine))
        start_response("200 OK", [])
        return []

    app = wsgi.GuardrailsMiddleware(view, guards=[guard])
    statuses = [wsgi_client.ask(app).status for _ in range(4)]
    assert [str(status)[:3] for status in statuses] == ["200", "200", "200", "503"]
    own = "statement" if driver == "pure Python" else "other_work"
    assert [[each.doing for each in status.holders] for status in seen] == [
        [own],
        ["gone", own],
        ["gone", "gone", own],
        ["gone", "gone", "gone"],
    ]
    assert seen[-1].cause == "leak"
    poll(lambda: "connections were not returned" in caplog.text, "the log says that they leak")
    while FORGOTTEN:
        FORGOTTEN.pop().close()
    engine.dispose()
