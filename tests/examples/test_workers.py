"""The workers of the examples, with a broker on Valkey, while a migration locks the table that they read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from guardrails.testing._processes import end
from guardrails.testing.servers import ValkeyServer
from support import upstream
from support.paths import EXAMPLES, python_path
from support.polling import poll

SCHEMA = (EXAMPLES / "fastapi_service" / "schema.sql").read_bytes()
WORKERS = EXAMPLES / "workers"

CELERY = "celery -A celery_tasks worker --concurrency 1 --loglevel INFO --without-mingle --pool "
COMMANDS = {
    "celery-prefork": CELERY + "prefork",
    "celery-threads": CELERY + "threads",
    "dramatiq": "dramatiq dramatiq_actors --processes 1 --threads 1",
    "rq": "rq.cli worker --worker-class rq.SimpleWorker --with-scheduler --url {url}",
    "arq": "arq arq_jobs.WorkerSettings",
}
SEND = {
    "celery": "from celery_tasks import monthly_summary\nsend = monthly_summary.delay",
    "dramatiq": "from dramatiq_actors import monthly_summary\nsend = monthly_summary.send",
    "rq": "import redis, rq\n"
    "queue = rq.Queue(connection=redis.Redis.from_url('{url}'))\n"
    "send = lambda month: queue.enqueue('rq_jobs.monthly_summary', month, job_timeout=10)",
    "arq": "import arq, arq_jobs, asyncio\n"
    "async def put(month):\n"
    "    pool = await arq.create_pool(arq_jobs.WorkerSettings.redis_settings)\n"
    "    await pool.enqueue_job('monthly_summary', month)\n"
    "    await pool.aclose()\n"
    "send = lambda month: asyncio.run(put(month))",
}
"""Programs with a function that puts a job into the queue."""


class Worker:
    """A worker process, its queue, and the database that it works on.

    Args:
        kind: One of `COMMANDS`.
        database: A libpq connection string.
        environ: What the worker finds in its environment.
        log: The file for what it prints.
    """

    def __init__(self, kind, database, environ, log):
        self.kind = kind
        self.database = database
        self.environ = environ
        self.log = log
        words = COMMANDS[kind].format(url=environ["REDIS_URL"]).split()
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *words], cwd=WORKERS, env=environ, stdout=output, stderr=output
            )
        program = SEND[kind.partition("-")[0]].format(url=environ["REDIS_URL"])
        program += "\nimport sys\nfor line in sys.stdin: send(int(line))"
        self.sender = subprocess.Popen(
            [sys.executable, "-c", program], cwd=WORKERS, env=environ, stdin=subprocess.PIPE, text=True
        )

    def send(self, month):
        """Puts a job into the queue, by a process that has its libraries imported."""
        self.sender.stdin.write(f"{month}\n")
        self.sender.stdin.flush()

    def stop(self):
        """Ends both processes."""
        end(self.process.pid, signal.SIGTERM)
        self.process.wait(10)
        self.sender.stdin.close()
        self.sender.wait(10)

    def ask(self, statement):
        """The first column of what the database answers."""
        with psycopg.connect(self.database) as connection:
            return [row[0] for row in connection.execute(statement)]

    def done(self):
        """The months that have a summary."""
        return set(self.ask("select month from summaries"))

    def until(self, condition, what):
        """Waits; fails with what the worker has printed."""
        try:
            poll(condition, what, 40)
        except AssertionError:
            pytest.fail(f"{what}\n{self.log.read_text()}")

    def is_waiting(self):
        """True while a statement of the worker waits for the lock."""
        waiting = (
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = 'workers'"
        )
        return self.ask(waiting) != [0]


@pytest.fixture
def database(postgres):
    """A libpq connection string of a database with the tables of the examples."""
    with psycopg.connect(postgres.url(""), autocommit=True) as connection:
        connection.execute("create database workers")
    try:
        address = make_conninfo(postgres.url(""), dbname="workers")
        with psycopg.connect(address) as connection:
            connection.execute(SCHEMA)
        yield address
    finally:
        with psycopg.connect(postgres.url(""), autocommit=True) as connection:
            connection.execute("drop database workers with (force)")


@pytest.fixture
def start(postgres, database, tmp_path, tmp_path_factory):
    """Starts a worker and returns it when it has done its first job."""
    workers = []
    with ValkeyServer.start() as broker:

        def start(kind, **settings):
            packages = [upstream.packages(["arq"], tmp_path_factory.getbasetemp())] if kind == "arq" else []
            environ = {
                "DATABASE_URL": postgres.url("psycopg", "workers"),
                "REDIS_URL": broker.url(),
                "PYTHONPATH": python_path(*packages),
                **settings,
            }
            worker = Worker(kind, database, os.environ | environ, tmp_path / "log")
            workers.append(worker)
            worker.send(1)
            worker.until(lambda: worker.done() == {1}, "the worker works")
            return worker

        try:
            yield start
        finally:
            for worker in workers:
                worker.stop()


@pytest.mark.slow
@pytest.mark.parametrize("kind", COMMANDS)
def test_a_refused_job_is_done_later(kind, start):
    """The job that meets the lock fails at the guard's timeout, the next one is refused and comes back."""
    settings = {"TIMEOUT": "0.5", "CONSECUTIVE_FAILURES": "1", "WAIT_DURATION_IN_OPEN_STATE": "5"}
    worker = start(kind, **{f"GUARDRAILS_REPORTS_DB_{name}": value for name, value in settings.items()})
    with psycopg.connect(worker.database) as migration:
        migration.execute("lock table reports in access exclusive mode")
        worker.send(2)
        worker.until(lambda: "CallTimeoutError" in worker.log.read_text(), "the first job is stopped")
        worker.send(3)
        worker.until(
            lambda: " refused (the circuit is open" in worker.log.read_text(), "the second job is refused"
        )
    worker.until(lambda: 3 in worker.done(), "the second job is done")
    assert worker.done() == {1, 3}


@pytest.mark.slow
@pytest.mark.parametrize("kind", COMMANDS)
def test_the_limit_of_a_job_stops_its_statement(kind, start):
    """The guard would wait for a minute."""
    worker = start(kind, GUARDRAILS_REPORTS_DB_TIMEOUT="60")
    with psycopg.connect(worker.database) as migration:
        migration.execute("lock table reports in access exclusive mode")
        worker.send(2)
        worker.until(worker.is_waiting, "the job waits for the lock")
        began = time.monotonic()
        worker.until(lambda: not worker.is_waiting(), "its statement is stopped")
        assert time.monotonic() - began < 20
        worker.until(lambda: "CallTimeoutError" in worker.log.read_text(), "the job knows it")
    assert worker.done() == {1}
    worker.send(4)
    worker.until(lambda: 4 in worker.done(), "the worker goes on")


@pytest.mark.parametrize("locked", [False, True])
def test_a_script_for_cron_tells_by_its_exit_code(locked, postgres, database):
    """Done, or stopped at its limit."""
    environ = {
        "DATABASE_URL": postgres.url("psycopg", "workers"),
        "PYTHONPATH": python_path(),
        "LIMIT": "0.5" if locked else "20",
    }
    with psycopg.connect(database) as migration:
        if locked:
            migration.execute("lock table reports in access exclusive mode")
        ended = subprocess.run(
            [sys.executable, "cron_job.py", "3"],
            cwd=WORKERS,
            env=os.environ | environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    if locked:
        assert (ended.returncode, ended.stdout) == (1, "")
        assert ended.stderr.startswith("stopped: ")
    else:
        assert (ended.returncode, ended.stdout) == (0, "month 3: 300\n"), ended.stderr
