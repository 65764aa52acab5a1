"""What someone asks who has read nothing: a search for the words finds the section that answers."""

from __future__ import annotations

import pytest

from support.page_search import search, sections

QUESTIONS = {
    "QueuePool limit reached, what now?": "guides/pools.md#queuepool-limit-reached-what-now",
    "how do I turn it off": "roll-out.md#turn-it-off",
    "alembic behind the guard": "guides/sqlalchemy.md#migrations-alembic-behind-the-guard",
    "503 although the database is fine": "production/why-503.md#a-503-although-the-database-is-fine",
    "import into Grafana": "production/metrics.md#dashboard-and-alerts",
    "logging": "reference/log.md",
    "roll out without risk": "roll-out.md",
    "two databases": "guides/sqlalchemy.md#two-databases-replicas-several-engines",
    "which timeout wins": "guides/deadlines.md#which-timeout-counts",
    "pgbouncer": "guides/pgbouncer.md",
    "connection leaks": "guides/leaks.md",
    "kubernetes probes": "production/probes.md#kubernetes",
    "test my code with it": "guides/testing.md",
    "pool size for 4 workers": "guides/pool-size.md",
    "who holds the lock": "guides/pools.md#who-holds-the-lock",
    "cache should fail open when Redis is down": "guides/redis.md#a-cache-that-fails-open",
    "retry without a retry storm": "guides/retries.md",
    "what does it cost": "why.md#what-it-costs",
    "environment variables": "reference/settings.md#settings-from-the-environment",
    "Flask": "guides/frameworks.md#flask",
    "differences from pybreaker": "guides/pybreaker.md#what-differs-and-why",
    "OpenTelemetry spans": "production/metrics.md#opentelemetry",
    "does it work with gevent": "reference/versions.md#where-it-runs-gevent-uvloop-fork-signals",
    "a COMMIT timed out, did it happen?": "production/why-503.md#commit_unknown",
    "database password rotated": "guides/fail-over.md",
    "CORS error in the browser": "guides/frameworks.md#cors",
    "websocket refused": "guides/asgi.md#answers",
    "many processes share one connection budget": "guides/fleet.md",
    "a slow report blocks other routes": "guides/compartments.md",
    "Celery": "guides/workers.md",
    "cron job or script": "guides/workers.md",
    "asyncpg pool without SQLAlchemy": "guides/driver-pools.md",
    "Redis Cluster node is dead": "guides/redis-cluster.md",
    "which Python versions": "reference/versions.md#python",
    "checklist before production": "production/checklist.md",
    "list of all metrics": "reference/metrics.md#guards-and-compartments",
    "catch the error of a refused call": "reference/errors.md",
    "idle connections closed by the firewall": "guides/idle-connections.md",
    "Celery tasks that are refused": "guides/workers.md",
    "structlog": "production/logging.md",
    "tutorial": "tutorial.md",
}


@pytest.fixture(scope="module")
def every():
    """All sections of the user's pages."""
    return list(sections())


@pytest.mark.parametrize(("question", "answer"), QUESTIONS.items())
def test_the_answer_is_among_the_first_three(question, answer, every):
    """The words of the question are those of a title, a heading or the text below it.

    Where a whole page answers, each of its sections will do.
    """
    found = search(question, every)[:3]
    assert answer in (found if "#" in answer else [address.partition("#")[0] for address in found])


def test_a_question_without_an_answer_finds_nothing_of_use(every):
    """The search does not find by chance: words that no page has lead to no section before another."""
    assert search("zzyzx", every) == [each.address for each in every]
