"""Celery: a refused task is sent again, and the soft limit stops a statement before it stops the task.

celery -A celery_tasks worker --concurrency 4
celery -A celery_tasks worker --pool threads --concurrency 4
"""

from __future__ import annotations

import os

from celery import Celery
from summaries import summarize

app = Celery(
    "shop",
    broker=os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"),
    task_cls="guardrails.integrations.celery:GuardedTask",
)
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=1, task_soft_time_limit=10)


@app.task(soft_time_limit=2, default_retry_delay=1)  # type: ignore[untyped-decorator]  # Celery has no types
def monthly_summary(month: int) -> int:
    """At most 1.8 s of statements; refused: again after the error's ``retry_after`` and a second or more."""
    return summarize(month)
