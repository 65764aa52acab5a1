"""``compartments="auto"``: each call finds its compartment, and a locked table takes no more than a share."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections import Counter

import pytest
from sqlalchemy import QueuePool, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from guardrails import ConfigurationError, guarded, protect
from guardrails._core.shares import ACTIVE, share
from guardrails._guard.auto_compartments import MOST
from guardrails.integrations.asgi import GuardrailsMiddleware
from support.asgi_client import ask, http, serve
from support.polling import poll


@pytest.fixture
def pool(tmp_path):
    """An engine of ten connections."""
    engine = create_engine(f"sqlite:///{tmp_path}/db", poolclass=QueuePool, pool_size=10, max_overflow=0)
    yield engine
    engine.dispose()


@pytest.fixture
def db(pool, clock):
    """Its guard, with automatic compartments and no queue."""
    return protect(pool, name="db", compartments="auto", clock=clock, max_wait_duration=0)


def names(guard):
    return [part.name for part in guard.compartments]


def part(guard, name):
    """The compartment with this name."""
    return next(part for part in guard.compartments if part.name == name)


def use(engine):
    """One checkout."""
    with engine.connect():
        pass


def hold(stack, engine, most=99):
    """Checks out as many connections as can be had; returns how many."""
    for held in range(most):
        try:
            stack.enter_context(engine.connect())
        except Exception:
            return held
    return most


def test_a_call_belongs_to_what_was_declared_else_to_its_function_else_to_default(db, pool):
    """A declaration, a decorated function and a call without a workload each make a compartment."""
    reports = db.compartment("reports")

    @guarded(db)
    def load():
        use(pool)

    @guarded(reports)
    def report():
        with db.call():  # a plain call of the guard belongs to no workload
            use(pool)

    for work in (load, load, report, lambda: use(pool)):
        work()
    assert {one.name: one.snapshot().admitted for one in db.compartments} == {
        "reports": 1,
        load.__qualname__: 2,
        "default": 1,
    }
    assert db.snapshot().admitted == 4


def test_functions_of_the_same_name_are_two_workloads(db, pool):
    """Their modules tell them apart."""

    def load():
        use(pool)

    ours = guarded(db)(load)
    theirs = functools.partial(load)
    theirs.__qualname__, theirs.__module__ = load.__qualname__, "elsewhere"
    theirs = guarded(db)(theirs)
    ours()
    theirs()
    assert names(db) == [load.__qualname__, f"elsewhere.{load.__qualname__}"]


def test_a_compartment_alone_may_use_every_slot_and_one_of_two_its_share(db, pool, clock):
    """From the moment a second workload asks, none gets a slot beyond its share; later all are free again."""
    reports = db.compartment("reports")
    with contextlib.ExitStack() as stack:
        assert hold(stack, pool) == 10
    with reports.call():
        use(pool)
    with contextlib.ExitStack() as stack:
        assert hold(stack, pool) == share(10) == 7
        with reports.call():
            assert hold(stack, pool) == 3
    clock.advance(ACTIVE)
    with contextlib.ExitStack() as stack:
        assert hold(stack, pool) == 10


def test_a_second_compartment_gets_the_slots_that_the_first_releases(db, pool):
    """The first keeps what it has beyond its share until it gives that back, and gets no more."""
    reports = db.compartment("reports")
    with contextlib.ExitStack() as first, contextlib.ExitStack() as stack:
        assert hold(first, pool) == 10
        with reports.call():
            assert hold(stack, pool) == 0
        first.pop_all().close()
        assert hold(stack, pool) == 7


def test_resizing_and_sizes_of_ones_own(db, pool):
    """Shares follow the guard's slots; a size given by hand stays."""
    fixed, by_hand = db.compartment("fixed", max_concurrent_calls=2), db.compartment("by hand")
    use(pool)
    with fixed.call():
        use(pool)
    by_hand.resize(1)
    db.resize(5)
    sizes = {one.name: one.snapshot().max_concurrent_calls for one in db.compartments}
    assert sizes == {"fixed": 2, "by hand": 1, "default": 3}


def test_the_number_of_automatic_compartments_is_limited(db, pool):
    """The rest share one, whatever they are called."""
    functions = [guarded(db)(type("Repository", (), {"__module__": "m", "__call__": lambda _: use(pool)})())]

    def make(number):
        def load():
            use(pool)

        load.__qualname__ = f"load_{number}"
        return guarded(db)(load)

    functions += [make(number) for number in range(MOST + 20)]
    for function in functions:
        function()
    assert len(db.compartments) == MOST + 1
    assert names(db)[-1] == "other"
    assert part(db, "other").snapshot().admitted == 21


def test_a_misspelt_choice_is_refused(pool):
    """The message names the words, and the engine stays as it was."""
    words = "compartments must be 'auto' or 'declared' or 'none', got 'declare'"
    with pytest.raises(ConfigurationError, match=words):
        protect(pool, name="db", compartments="declare")
    protect(pool, name="db").detach()


def test_compartments_form_by_themselves_unless_told_otherwise(pool):
    """Where only declared ones are wanted, none forms; where none are, none can be declared."""
    for options, formed in [({}, 2), ({"compartments": "declared"}, 0), ({"compartments": "none"}, 0)]:
        db = protect(pool, **options)
        guarded(db)(lambda: use(pool))()
        use(pool)
        assert len(db.compartments) == formed
        if options.get("compartments") == "none":
            with pytest.raises(ConfigurationError, match="made with compartments='none'"):
                db.compartment("reports")
        else:
            assert db.compartment("reports").name == "reports"
        db.detach()


def test_after_detaching_a_decorated_function_goes_on(db, pool):
    """It passes its compartment, as a declared one would."""

    @guarded(db)
    def load():
        use(pool)

    load()
    use(pool)
    db.detach()
    load()
    assert part(db, load.__qualname__).snapshot().admitted == 2


def test_racing_workloads_never_hold_more_than_their_share(pool):
    """Threads of two compartments come and go at once; both ask all the time, so neither exceeds it."""
    db = protect(pool, name="db", compartments="auto", max_wait_duration=0.01)
    parts = [db.compartment("one"), db.compartment("two")]
    for one in parts:
        with one.call():
            use(pool)
    excess = []

    def work(one):
        for _ in range(150):
            with contextlib.suppress(Exception), one.call(), pool.connect():
                held = one.snapshot().in_use
                if held > share(10):
                    excess.append(held)

    threads = [threading.Thread(target=work, args=(one,)) for one in parts for _ in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert excess == []
    assert [one.snapshot().max_concurrent_calls for one in parts] == [7, 7]


class Early:
    """A middleware outside the router that asks the database too, as one for sessions would."""

    def __init__(self, app, engine):
        self.app = app
        self.engine = engine

    async def __call__(self, scope, receive, send):
        use(self.engine)
        await self.app(scope, receive, send)


def test_requests_are_sorted_by_their_route_never_by_their_path(db, pool):
    """Templates with their mounts; a function of its own outranks the route; no route is ``default``."""

    @guarded(db)
    def load():
        use(pool)

    def query(request):
        use(pool)
        return PlainTextResponse("fine")

    async def function(request):
        load()
        return PlainTextResponse("fine")

    def query_again(request):
        return query(request)

    routes = [
        Route("/orders/{id:int}", query),
        Mount("/api", routes=[Route("/orders/{id:int}", query_again)]),
        Route("/function", function),
    ]
    app = GuardrailsMiddleware(Early(Starlette(routes=routes), pool))
    paths = ["/orders/1", "/orders/2", "/api/orders/3", "/function", "/nowhere"]
    assert [ask(app, http(path)).status for path in paths] == [200, 200, 200, 200, 404]
    assert {one.name: one.snapshot().admitted for one in db.compartments} == {
        load.__qualname__: 1,
        "GET /orders/{id:int}": 4,
        "GET /api/orders/{id:int}": 2,
        "GET /function": 1,
        "default": 1,
    }


async def tracked(app, path, answers):
    answers[(await serve(app, http(path))).status] += 1


@pytest.mark.parametrize("routes", [1, 3])
def test_a_locked_table_leaves_the_other_endpoint_alive(postgres, routes):
    """With ``protect`` and the middleware alone, no evidence before the lock, one route or several."""

    async def main():
        engine = create_async_engine(postgres.url("asyncpg"), pool_size=5, max_overflow=5)
        changes = []
        db = protect(engine, name="db", compartments="auto", listeners=[changes.append])

        def endpoint(table):
            async def query(request):
                async with engine.connect() as connection:
                    await connection.execute(text(f"select count(*) from {table}"))
                return PlainTextResponse("fine")

            return query

        paths = [f"/auto_a/{number}" for number in range(routes)]
        app = Starlette(
            routes=[Route(f"{path}/{{id}}", endpoint(path.split("/")[1])) for path in [*paths, "/auto_b"]]
        )
        app.add_middleware(GuardrailsMiddleware, guards=[db])
        async with engine.begin() as connection:
            for table in ("auto_a", "auto_b"):
                await connection.execute(text(f"drop table if exists {table}"))
                await connection.execute(text(f"create table {table} (id int)"))
        locked, bystander = Counter(), Counter()
        other = create_async_engine(postgres.url("asyncpg"))
        async with other.connect() as lock, asyncio.TaskGroup() as users:
            await lock.execute(text("lock table auto_a in access exclusive mode"))
            for number in range(120):  # three seconds, forty at each endpoint every second
                users.create_task(tracked(app, f"/auto_b/{number}", bystander))
                users.create_task(tracked(app, f"{paths[number % routes]}/{number}", locked))
                await asyncio.sleep(0.025)
            await lock.rollback()
        await other.dispose()
        await engine.dispose()
        return db, changes, locked, bystander

    db, changes, locked, bystander = asyncio.run(main())
    assert bystander[200] >= 0.99 * bystander.total() == 0.99 * 120
    assert locked[200] < 40
    opened = {change.compartment for change in changes if getattr(change, "new", None) == "open"}
    if routes == 1:
        assert opened == {"GET /auto_a/0/{id}"}
        assert part(db, "GET /auto_a/0/{id}").snapshot().max_concurrent_calls == 7
    assert not opened & {"GET /auto_b/{id}", None}
    poll(lambda: db.snapshot().in_use == 0, "every slot is back")
