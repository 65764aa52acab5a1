"""``guardrails doctor`` on services as people write them, each in a process of its own."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import psycopg
import pytest

from support.forks import ForkServer

CANARY = "canary-91d4"

GOOD = """
from sqlalchemy import create_engine
from starlette.applications import Starlette
from guardrails import protect
from guardrails.integrations.asgi import GuardrailsMiddleware
url = "postgresql+psycopg://u:canary-91d4@canary-91d4/orders"
engine = create_engine(url, pool_size=5, max_overflow=5)
db = protect(engine)
app = Starlette()
app.add_middleware(GuardrailsMiddleware, guards=[db])
"""


def kept_alive(option):
    """The good service, with a setting of its guard."""
    return GOOD.replace("protect(engine)", f"protect(engine, {option})")


LIBRARIES = (
    *("click", "rich.console", "sqlalchemy.ext.asyncio", "psycopg", "aiosqlite", "redis.asyncio"),
    *("starlette.applications", "fastapi", "flask", "django.conf", "sqlalchemy.dialects.postgresql.psycopg"),
    *(f"guardrails.integrations.{name}" for name in ("asgi", "flask", "sqlalchemy", "redis")),
    *("guardrails._guard.guard", "guardrails._guard.protect", "guardrails.integrations.sqlalchemy._engine"),
    *("guardrails.cli.doctor", "guardrails.diagnosis.service"),
)


@pytest.fixture(scope="module")
def libraries():
    """A process that has imported the libraries of the services and ours, and made nothing."""
    with ForkServer(*LIBRARIES) as server:
        yield server


@pytest.fixture
def doctor(libraries, tmp_path):
    """Runs the command on a service of this text; its exit code and what it printed."""

    def run(service, *words, app="shop:app"):
        (tmp_path / "shop.py").write_text(service)
        code, output = libraries.run(tmp_path, "guardrails.cli", "doctor", "--app", app, *words)
        assert CANARY not in output
        return code, output

    return run


@pytest.fixture
def found(doctor):
    """The findings by their kinds."""

    def run(service, *words, **options):
        code, output = doctor(service, "--json", *words, **options)
        findings = {finding["kind"]: finding for finding in json.loads(output.splitlines()[0])["findings"]}
        assert code == bool(findings)
        return findings

    return run


def test_good_service_has_no_findings(doctor, tmp_path):
    """Exit 0 and one line; so too in a process that has imported nothing before."""
    assert doctor(GOOD) == (0, "shop:app: nothing found.\n")
    command = [sys.executable, "-W", "error", "-m", "guardrails.cli", "doctor", "--app", "shop:app"]
    done = subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("shop:app: nothing found.\n", "")
    words = ("--workers", "4", "--max-connections", "100", "--worker-timeout", "30")
    assert doctor(GOOD, *words)[0] == 0


def test_unprotected_engines_and_clients_are_found(found):
    """Engines and Redis clients that the service has made, sync and asyncio."""
    findings = found(GOOD + "other = create_engine('sqlite://')\nimport redis\ncache = redis.Redis()\n")
    assert set(findings) == {"unguarded"}
    assert sorted(findings["unguarded"]["details"]) == ["Redis client of redis", "engine of sqlite"]
    protected = "import redis.asyncio\ncache = redis.asyncio.Redis(max_connections=5)\nprotect(cache)\n"
    assert found(GOOD + protected) == {}


POOLS = """
from psycopg_pool import AsyncConnectionPool, ConnectionPool
import asyncpg
pools = [
    ConnectionPool("host=canary-91d4", open=False), AsyncConnectionPool("host=canary-91d4", open=False),
    asyncpg.create_pool("postgresql://canary-91d4/orders", loop=__import__("asyncio").new_event_loop()),
]
"""


def test_unprotected_pools_of_drivers_are_found(found):
    findings = found(GOOD + POOLS)
    assert set(findings) == {"unguarded"}
    assert sorted(findings["unguarded"]["details"]) == ["pool of asyncpg", *["pool of psycopg_pool"] * 2]
    assert found(GOOD + POOLS + "for each in pools[:2]: protect(each)\ndel pools[2]\n") == {}


def test_missing_middleware_is_found(found):
    """Of Starlette, FastAPI and Flask; where it cannot be seen from outside, nothing is said."""
    bare = GOOD.replace("app.add_middleware(GuardrailsMiddleware, guards=[db])", "")
    assert set(found(bare)) == {"no_middleware"}
    assert found(bare + "app = GuardrailsMiddleware(app, guards=[db])") == {}
    fastapi = bare.replace(
        "from starlette.applications import Starlette", "from fastapi import FastAPI as Starlette"
    )
    assert set(found(fastapi)) == {"no_middleware"}
    flask = bare + "from flask import Flask\napp = Flask('shop')\n"
    assert set(found(flask)) == {"no_middleware"}
    flask += "from guardrails.integrations.flask import Guardrails\nGuardrails(app, guards=[db])\n"
    assert found(flask) == {}
    assert found(bare + "async def app(scope, receive, send): ...") == {}


def test_limits_are_compared(found):
    """Of a call with a worker's, of slots with threads, of all processes with the server's."""
    findings = found(GOOD, "--worker-timeout", "5")
    assert findings["ladder"]["what"] == "guard 'orders' gives a call 5 s, a worker has 5 s to live"
    findings = found(GOOD, "--threads", "10")
    assert findings["threads"]["what"].startswith("10 slots of synchronous databases can take all 10 threads")
    findings = found(GOOD, "--workers", "10", "--max-connections", "100")
    assert findings["budget"]["what"] == "10 x 10 connections are more than the 97 there are for applications"
    assert set(found(GOOD.replace("protect(engine)", "protect(engine, timeout=None)"))) == {"unbounded"}


def test_engines_of_one_server_share_its_connections(found):
    """Two databases of one server are added up, those of two servers are not."""
    second = "second = create_engine('postgresql+psycopg://u@{}/other', pool_size=5, max_overflow=5)\n"
    second += "protect(second)\n"
    words = ("--workers", "6", "--max-connections", "100", "--threads", "100")
    assert set(found(GOOD + second.format(CANARY), *words)) == {"budget"}
    assert found(GOOD + second.format("elsewhere"), *words) == {}


def test_asynchronous_engines_take_no_threads(found):
    """A task that waits has none."""
    service = GOOD.replace(
        "from sqlalchemy import create_engine",
        "from sqlalchemy.ext.asyncio import create_async_engine as create_engine",
    )
    assert found(service, "--threads", "1") == {}


LIFESPAN = """
import contextlib, pathlib
from starlette.applications import Starlette
@contextlib.asynccontextmanager
async def lifespan(app):
    from sqlalchemy.ext.asyncio import create_async_engine
    app.state.engine = create_async_engine("sqlite+aiosqlite://")
    print("started")
    yield
    await app.state.engine.dispose()
    pathlib.Path("stopped").touch()
app = Starlette(lifespan=lifespan)
"""

FASTAPI = LIFESPAN.replace("starlette.applications import Starlette", "fastapi import FastAPI as Starlette")


@pytest.mark.parametrize("service", [LIFESPAN, FASTAPI], ids=["starlette", "fastapi"])
def test_engine_of_a_lifespan_is_found_and_its_lifespan_ended(found, tmp_path, service):
    """It is started as a server would, looked at, and stopped; what it prints is no finding."""
    assert found(service)["unguarded"]["details"] == ["engine of sqlite"]
    assert (tmp_path / "stopped").exists()


def test_without_lifespan_only_imported_objects_are_checked(found, tmp_path):
    """For where the database is out of reach."""
    assert set(found(LIFESPAN, "--no-lifespan")) == {"nothing_made"}
    assert not (tmp_path / "stopped").exists()


def test_failing_lifespans_are_reported_by_their_place(doctor, found):
    """Exit 2 where it cannot start; a finding where it cannot stop; neither with its words."""
    code, output = doctor(LIFESPAN.replace("    yield", f"    raise RuntimeError('{CANARY}')\n    yield"))
    said = " ".join(output.replace("│", " ").split())
    assert (code, "cannot be started: RuntimeError in lifespan, line 9 of shop.py" in said) == (2, True)
    findings = found(LIFESPAN.replace("    yield", f"    yield\n    raise RuntimeError('{CANARY}')"))
    assert "RuntimeError in lifespan, line 10 of shop.py" in findings["shutdown"]["what"]


def test_engine_of_a_factory_is_found(found, doctor):
    """With --factory the function is called; without it there is nothing, and that is said."""
    lines = GOOD.strip().splitlines()
    factory = "\n".join(["def make():", *("    " + line for line in lines), "    return app"])
    assert found(factory, "--factory", app="shop:make") == {}
    # An engine that nothing keeps is garbage, and may be gone before anybody looks.
    bare = factory.replace("    db = protect(engine)", "    make.kept = engine").replace("[db]", "[]")
    assert set(found(bare, "--factory", app="shop:make")) == {"unguarded"}
    assert "--factory" in found(factory, app="shop:make")["nothing_made"]["advice"]
    code, output = doctor("def make(settings):\n    pass\n", "--factory", app="shop:make")
    assert (code, "cannot be called as a factory: TypeError" in " ".join(output.split())) == (2, True)


def test_applications_without_a_lifespan_are_checked(found):
    """Those that end, those that raise, and WSGI."""
    engine = GOOD.partition("app = ")[0]
    for app in (
        "async def app(scope, receive, send): ...",
        "async def app(scope, receive, send):\n    assert scope['type'] == 'http'",
        "def app(environ, start_response): ...",
    ):
        assert found(engine + app) == {}


def test_guards_without_an_engine_count_as_made(found):
    """Nothing made is said only where there is nothing at all."""
    assert set(found("app = None")) == {"nothing_made"}
    assert (
        found("from guardrails import Guard\nmail = Guard('mail', max_concurrent_calls=5)\napp = None") == {}
    )
    django = "from django.conf import settings\nsettings.configure(DATABASES={'default': {}})\napp = None"
    assert set(found(django)) == {"nothing_made"}


def test_variables_of_a_guard_that_is_not_there_are_found(found):
    """One of the guard that was made has its effect."""
    spelt = "import os\nos.environ |= {'GUARDRAILS_ORDERS_TIMEOUT': '3', 'GUARDRAILS_ORDER_MODE': 'shadow'}\n"
    finding = found(spelt + GOOD)["variable"]
    assert finding["what"].endswith(": 1")
    assert finding["details"] == ["GUARDRAILS_ORDER_MODE"]
    assert found(spelt.replace("ORDER_MODE", "ORDERS_MODE") + GOOD) == {}


DJANGO = """
import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from guardrails import Guard
db = Guard("shop-db", max_concurrent_calls=10, timeout=2.0)
urlpatterns = []
default = {
    "ENGINE": "guardrails.integrations.django.postgresql",
    "NAME": "shop", "USER": "u", "PASSWORD": "canary-91d4", "HOST": "canary-91d4",
    "OPTIONS": {"guard": db},
}
middleware = [
    "guardrails.integrations.django.GuardrailsMiddleware",
    "django.middleware.common.CommonMiddleware",
]
databases = {"default": default}
# settings
settings.configure(ROOT_URLCONF=__name__, MIDDLEWARE=middleware, DATABASES=databases)
django.setup()
app = get_wsgi_application()
"""


def django(settings):
    """The Django project, with other settings."""
    return DJANGO.replace("# settings", settings)


NO_GUARD = "default |= {'ENGINE': 'django.db.backends.postgresql', 'OPTIONS': {}}"
NO_MIDDLEWARE = "middleware.pop(0)"


def test_a_good_django_project_has_no_findings(found):
    assert found(DJANGO, "--threads", "20", "--workers", "4", "--max-connections", "100") == {}
    assert found(DJANGO.replace("get_wsgi_application()", "get_asgi_application()"), "--threads", "5") == {}


@pytest.mark.parametrize("more", ["", NO_MIDDLEWARE])
def test_a_database_of_django_without_a_guard_is_found(found, more):
    """A guard that is attached to nothing covers nothing."""
    findings = found(django(f"{NO_GUARD}\n{more}"))
    assert set(findings) == {"unguarded"} | ({"no_middleware"} if more else set())
    assert findings["unguarded"]["details"] == [
        "database 'default' of Django (django.db.backends.postgresql)"
    ]


def test_one_database_of_django_among_several_is_found(found):
    lite = "databases['files'] = {'ENGINE': 'django.db.backends.sqlite3', 'NAME': ':memory:'}"
    findings = found(django(lite))
    assert set(findings) == {"unguarded"}
    assert findings["unguarded"]["details"] == ["database 'files' of Django (django.db.backends.sqlite3)"]


def test_a_guarded_backend_of_django_without_its_guard_is_found(found):
    """Without the middleware, which ends the start of such a project."""
    findings = found(django(f"default['OPTIONS'] = {{}}\n{NO_MIDDLEWARE}"))
    assert set(findings) == {"unguarded", "no_middleware"}
    assert "OPTIONS['guard'] must be a Guard" in findings["unguarded"]["details"][0]


def test_the_middleware_of_django_is_looked_for(found):
    """In the settings, and around the application."""
    assert set(found(django(NO_MIDDLEWARE))) == {"no_middleware"}
    around = (
        "\nfrom guardrails.integrations.wsgi import GuardrailsMiddleware\napp = GuardrailsMiddleware(app)\n"
    )
    assert found(django(NO_MIDDLEWARE) + around) == {}
    assert (
        found(django(NO_MIDDLEWARE) + around + "inner = app\ndef app(*words): return inner(*words)\n") == {}
    )
    findings = found(django("middleware.reverse()"))
    assert set(findings) == {"middleware_order"}
    assert findings["middleware_order"]["details"] == ["django.middleware.common.CommonMiddleware"]


def test_slots_of_django_are_compared_with_threads(found):
    """A guard of two databases counts once."""
    findings = found(django("databases['other'] = default | {'NAME': 'other'}"), "--threads", "10")
    assert set(findings) == {"threads"}
    assert findings["threads"]["details"] == ["'shop-db': 10"]
    assert found(django("databases['other'] = default | {'NAME': 'other'}"), "--threads", "11") == {}


def test_connections_of_django_are_compared_with_the_servers(found):
    """Kept ones by thread and alias, those of a pool by its size, others by slots."""
    words = ("--workers", "6", "--threads", "20", "--max-connections", "100")
    assert found(DJANGO, *words) == {}
    kept = found(django("default['CONN_MAX_AGE'] = 60"), *words)
    assert set(kept) == {"budget"}
    assert kept["budget"]["what"].startswith("6 x 20 connections are more than the 97")
    assert kept["budget"]["details"] == ["'shop-db', one for each thread and 'default': 20"]
    pool = found(django("default['OPTIONS']['pool'] = {'max_size': 30}"), *words)
    assert pool["budget"]["details"] == ["'shop-db', the pool of 'default': 30"]
    shared = "databases['other'] = default | {'NAME': 'other'}"
    assert found(django(shared), *words) == {}
    kept = found(django(f"default['CONN_MAX_AGE'] = 60\n{shared}"), *words)
    assert kept["budget"]["what"].startswith("6 x 40 connections")
    apart = "databases['other'] = default | {'HOST': 'other', 'CONN_MAX_AGE': None}"
    assert found(django(f"default['CONN_MAX_AGE'] = 60\n{apart}"), *words[2:], "--workers", "4") == {}


def test_one_pool_is_counted_once(found):
    """An engine, its copies, an engine that was given its pool, two clients of one pool."""
    copies = GOOD + (
        "copy = engine.execution_options(isolation_level='AUTOCOMMIT')\n"
        "other = create_engine(url, pool=engine.pool)\n"
        "import redis\npool = redis.ConnectionPool(max_connections=5)\n"
        "caches = [redis.Redis(connection_pool=pool) for _ in range(3)]\n"
    )
    words = ("--threads", "11", "--workers", "9", "--max-connections", "100")
    findings = found(copies, *words)
    assert set(findings) == {"unguarded"}
    assert findings["unguarded"]["details"] == ["Redis client of redis"]


def test_findings_for_people(doctor):
    """A line each, what to look at, what to do."""
    code, output = doctor(GOOD, "--threads", "10")
    assert code == 1
    assert "shop:app: 10 slots of synchronous databases" in output
    assert "    'orders': 10" in output
    assert "  -> fewer slots (max_concurrent_calls=...)" in output


@pytest.mark.parametrize(
    ("words", "app", "said"),
    [
        ([], "shop", "--app must be MODULE:ATTR"),
        ([], "nowhere:app", "there is no such module here; run it in the folder in which the service"),
        ([], "shop:nothing", "cannot be imported: AttributeError"),
        (["--workers", "0"], "shop:app", "workers must be a whole number from 1"),
        (["--threads", "-1"], "shop:app", "threads must be a whole number from 1"),
        (["--worker-timeout", "nan"], "shop:app", "worker_timeout must be a number of seconds above 0"),
    ],
)
def test_wrong_arguments_are_named(doctor, words, app, said):
    """Exit 2, with the name of what is wrong."""
    code, output = doctor(GOOD, *words, app=app)
    assert code == 2
    assert said in " ".join(output.replace("│", " ").split())


def test_service_that_raises_shows_no_secret(doctor):
    """A message of its modules may hold a password; the place of the error does not."""
    code, output = doctor(f"def connect():\n    raise RuntimeError('{CANARY}')\nconnect()\n")
    assert code == 2
    said = "cannot be imported: RuntimeError in connect, line 2 of shop.py (module shop)"
    assert said in " ".join(output.split())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "import nosuch_driver",
            "ModuleNotFoundError, no module 'nosuch_driver' in <module>, line 1 of db.py",
        ),
        ("from json import nosuch", "ImportError, no module 'json' in <module>, line 1 of db.py (module db)"),
        ("def f(:", "SyntaxError in line 1 of db.py"),
        ("import sys\nsys.exit('canary-91d4')", "SystemExit in <module>, line 2 of db.py (module db)"),
        (
            "import sqlalchemy\nsqlalchemy.create_engine('canary-91d4')",
            "ArgumentError in <module>, line 2 of db.py",
        ),
    ],
)
def test_error_of_an_import_is_reported_by_module_and_file(doctor, tmp_path, text, said):
    """The service's own file, also where the error comes out of a library."""
    (tmp_path / "db.py").write_text(text)
    code, output = doctor("import db\napp = None\n")
    assert (code, said in " ".join(output.split())) == (2, True), output


# --- circuits and pools ---------------------------------------------------------------------------------


def with_policy(policy, **guard):
    """The good service with other settings of its circuit and guard."""
    options = "".join(f", {name}={value}" for name, value in guard.items())
    service = GOOD.replace("protect(engine)", f"protect(engine, breaker=BreakerPolicy({policy}){options})")
    return service.replace("import protect", "import BreakerPolicy, protect")


@pytest.mark.parametrize(
    ("policy", "guard"),
    [
        ("slow_call_duration_threshold=5", {}),
        ("slow_call_duration_threshold=30", {}),
        ("", {"timeout": 1}),
        ("minimum_number_of_calls=31", {}),  # 10 slots x (10 s / 5 s + 1)
        ("", {"max_concurrent_calls": 3}),
        ("sliding_window_size=4", {"max_concurrent_calls": 9}),
    ],
)
def test_circuits_that_slow_calls_cannot_open_are_found(found, policy, guard):
    """A threshold that no call reaches, a minimum that the slots cannot make in the window."""
    assert set(found(with_policy(policy, **guard))) == {"circuit"}


@pytest.mark.parametrize(
    ("policy", "guard"),
    [
        ("slow_call_duration_threshold=4.9", {}),
        ("minimum_number_of_calls=30", {}),
        ("", {"max_concurrent_calls": 4}),
        ("minimum_number_of_calls=1000, consecutive_failures=5", {}),
        ("minimum_number_of_calls=1000, sliding_window_type='count', sliding_window_size=100", {}),
    ],
)
def test_circuits_that_can_open_are_no_finding(found, policy, guard):
    """The next better value, and rules that need no rate."""
    assert found(with_policy(policy, **guard)) == {}


def test_circuits_of_other_guards_are_checked(found):
    """A guard of something that is no pool has a circuit, too; one without a circuit or a timeout has not."""
    mail = "from guardrails import Guard\nmail = Guard('mail', max_concurrent_calls=2{})\n"
    assert "'mail'" in found(GOOD + mail.format(""))["circuit"]["what"]
    assert found(GOOD + mail.format(", breaker=None")) == {}
    assert found(GOOD + mail.format(", timeout=None")) == {}


def test_pools_without_a_limit_are_found(found):
    """An engine's overflow, and a Redis client's connections; guarded or not."""
    endless = GOOD.replace("max_overflow=5", "max_overflow=-1")
    endless = endless.replace("protect(engine)", "protect(engine, max_concurrent_calls=10)")
    assert set(found(endless)) == {"unlimited"}
    bare = "import redis\ncache = redis.Redis(max_connections=2**31)\n"
    assert set(found(GOOD + bare)) == {"unguarded", "unlimited"}


def test_engines_without_a_pool_are_found(found):
    """A NullPool opens a connection for each checkout."""
    service = GOOD.replace("pool_size=5, max_overflow=5", "poolclass=NullPool")
    service = service.replace("protect(engine)", "protect(engine, max_concurrent_calls=10)")
    service = service.replace("import create_engine", "import NullPool, create_engine")
    assert set(found(service)) == {"null_pool"}


def asking(server, *words):
    """The options that name a server."""
    return ("--database-url", server.url("asyncpg"), *words)


def test_limit_of_connections_is_read_from_the_server(found, postgres):
    """Less what is reserved; a limit of the role counts if it is smaller; an option wins."""
    words = asking(postgres, "--workers", "10")
    what = found(GOOD, *words)["budget"]["what"]
    assert what == "10 x 10 connections are more than the 97 there are for applications"
    assert found(GOOD, *asking(postgres, "--workers", "9")) == {}
    assert found(GOOD, *words, "--max-connections", "200") == {}
    with psycopg.connect(postgres.url(""), autocommit=True) as connection:
        connection.execute("create role shop login connection limit 15")
        try:
            url = postgres.url().replace("postgres@", "shop@")
            what = found(GOOD, "--url", url, "--workers", "2")["budget"]["what"]
        finally:
            connection.execute("drop role shop")
    assert what == "2 x 10 connections are more than the 15 there are for applications"


def test_idle_connections_are_compared_with_the_servers_timeout(found, postgres):
    """Without pre-ping, and kept for longer."""
    with psycopg.connect(postgres.url(""), autocommit=True) as connection:
        connection.execute("create role shop login")
        connection.execute("alter role shop set idle_session_timeout = '60s'")
        words = ("--url", postgres.url().replace("postgres@", "shop@"))
        try:
            stale = found(GOOD, *words)["stale"]
            for option in ("pool_pre_ping=True", "pool_recycle=59"):
                assert found(GOOD.replace("max_overflow=5", f"max_overflow=5, {option}"), *words) == {}
            late = found(GOOD.replace("max_overflow=5", "max_overflow=5, pool_recycle=60"), *words)
            for option in ("keepalive=59", "max_lifetime=59", "idle_timeout=59"):
                assert found(kept_alive(option), *words) == {}, option
            for option in ("keepalive=60", "idle_timeout=59, minimum_idle=1", 'keepalive=59, mode="shadow"'):
                assert "stale" in found(kept_alive(option), *words), option
            aged = found(kept_alive("max_lifetime=90"), *words)
        finally:
            connection.execute("drop role shop")
    assert "keeps idle connections for 90 s, and its server" in aged["stale"]["what"]
    assert "keeps idle connections for ever, and its server closes them after 60 s" in stale["what"]
    assert "for 60 s, and its server" in late["stale"]["what"]


def test_timeout_of_mariadb_is_read(found, mariadb):
    """Its default is eight hours, which a quiet night exceeds."""
    service = GOOD.replace("postgresql+psycopg", "mysql+pymysql")
    stale = found(service, "--url", f"mysql+aiomysql://root@127.0.0.1:{mariadb.port}/guardrails")["stale"]
    assert "closes them after 28800 s" in stale["what"]


def test_server_that_does_not_answer_is_a_finding(found):
    """The settings are checked all the same; the address is not shown."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    url = f"postgresql://{CANARY}:{CANARY}@127.0.0.1:{port}/{CANARY}"
    findings = found(GOOD, "--url", url, "--threads", "10")
    assert set(findings) == {"unreachable", "threads"}
    assert str(port) not in findings["unreachable"]["what"]


@pytest.mark.parametrize("url", [CANARY, f"oracle://{CANARY}@h/d", f"redis://{CANARY}@h"])
def test_url_of_no_database_is_a_usage_error(doctor, url):
    """Exit 2, without the URL."""
    assert doctor(GOOD, "--url", url)[0] == 2


# --- fleets -----------------------------------------------------------------------------------------

FLEET = GOOD.replace(
    "db = protect(engine)",
    'from guardrails.fleet import Fleet\nfleet = Fleet("sqlite:///fleet.db", name="shop")\n'
    'db = protect(engine, fleet=fleet.budget("orders-db", connections=40))',
)


@pytest.fixture
def as_shop(postgres):
    """Makes a role with these attributes; returns the options that ask the server as that role."""
    with psycopg.connect(postgres.url(""), autocommit=True) as admin:

        def make(attributes=""):
            admin.execute("drop role if exists doctor_shop")
            admin.execute(f"create role doctor_shop login {attributes}")
            return ("--database-url", postgres.url().replace("postgres@", "doctor_shop@"))

        yield make
        admin.execute("drop role if exists doctor_shop")


def test_a_budget_of_a_fleet_is_counted_once(found):
    """However many processes share it; the slots of other engines are those of each process."""
    assert found(FLEET, "--workers", "50", "--max-connections", "100") == {}
    findings = found(FLEET, "--workers", "4", "--max-connections", "40")
    assert findings["budget"]["what"] == (
        "40 of budgets connections are more than the 37 there are for applications"
    )
    assert findings["budget"]["details"] == ["budget 'orders-db': 40"]
    both = (
        FLEET
        + f"other = create_engine('postgresql+psycopg://u@{CANARY}/other', pool_size=5, max_overflow=0)\n"
    )
    findings = found(both + "protect(other)\n", "--workers", "20", "--max-connections", "100")
    assert findings["budget"]["what"] == (
        "40 of budgets and 20 x 5 connections are more than the 97 there are for applications"
    )


def test_the_most_that_a_lease_may_give_counts_for_threads(found):
    assert set(found(FLEET, "--threads", "10")) == {"threads"}


def test_a_role_without_a_limit_gets_one_proposed(found, as_shop):
    """Its budget, what the role has open beside it, and a tenth."""
    words = as_shop()
    finding = found(FLEET, *words)["backstop"]
    assert finding["what"] == "the server does not hold role 'doctor_shop' to its budget"
    assert finding["advice"].endswith(": ALTER ROLE doctor_shop CONNECTION LIMIT 44")
    with psycopg.connect(words[1].replace("+psycopg", "")), psycopg.connect(words[1].replace("+psycopg", "")):
        finding = found(FLEET, *words)["backstop"]
    assert finding["advice"].endswith(" CONNECTION LIMIT 46")
    assert finding["details"][1] == "2 that the role has now beside them"
    assert found(FLEET, *as_shop("connection limit 44")) == {}
    assert set(found(FLEET, *as_shop("connection limit 500"))) == {"backstop"}
    assert found(GOOD, *as_shop()) == {}, "it has no fleet"


def test_a_limit_that_is_too_small_for_a_budget_is_found(found, as_shop):
    findings = found(FLEET, *as_shop("connection limit 30"))
    assert findings["budget"]["what"].startswith("40 of budgets connections are more than the 30 there are")
    words = as_shop("connection limit 40")
    assert found(FLEET, *words) == {}
    with psycopg.connect(words[1].replace("+psycopg", "")):
        finding = found(FLEET, *words)["backstop"]
    assert finding["what"] == (
        "the limit of role 'doctor_shop' is 40: too few for its budget and its other uses"
    )
    assert finding["advice"] == "ALTER ROLE doctor_shop CONNECTION LIMIT 45"


def test_a_superuser_has_no_limit(found, as_shop):
    finding = found(FLEET, *as_shop("superuser connection limit 44"))["backstop"]
    assert finding["what"].startswith("role 'doctor_shop' is a superuser")


def test_a_limit_of_mariadb_is_proposed(found, mariadb):
    service = FLEET.replace("postgresql+psycopg", "mysql+pymysql").replace(
        "pool_size=5", "pool_recycle=600, pool_size=5"
    )
    url = f"mysql+pymysql://root@127.0.0.1:{mariadb.port}/guardrails"
    finding = found(service, "--database-url", url)["backstop"]
    assert "ALTER USER 'root'@'" in finding["advice"]
    assert finding["advice"].endswith(" WITH MAX_USER_CONNECTIONS 44")
