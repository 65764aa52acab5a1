"""The tasks. Celery looks after Django's connections, because the settings' name is in the environment."""

from __future__ import annotations

import os

from celery import Celery

app = Celery(
    "orders",
    broker=os.environ["BROKER"],
    backend=os.environ["BROKER"],
    task_cls="guardrails.integrations.celery:GuardedTask",
)
app.conf.update(
    broker_connection_retry_on_startup=True,
    result_expires=60,
    worker_hijack_root_logger=False,
)


@app.task(default_retry_delay=0.1)
def count():
    """Counts in all three databases; the numbers, and the slots that it holds meanwhile."""
    from orders import urls  # noqa: PLC0415 - when Django is set up
    from orders.models import OldOrder, Order  # noqa: PLC0415

    counts = [Order.objects.using("default").count(), Order.objects.count(), OldOrder.objects.count()]
    return counts, {alias: urls.figures_of(alias)["slots"] for alias in urls.GUARDS}


@app.task(bind=True, default_retry_delay=0.1)
def refused_at_first(self):
    """Finds the archive's circuit open at its first try; the number of its retries."""
    from orders.guards import archive  # noqa: PLC0415
    from orders.models import OldOrder  # noqa: PLC0415

    if self.request.retries == 0:
        archive.force_open()
    else:
        archive.reset()
    OldOrder.objects.count()
    return self.request.retries


@app.task
def figures():
    """The figures of each alias, in a task that uses none."""
    from orders import urls  # noqa: PLC0415

    return {alias: urls.figures_of(alias) for alias in urls.GUARDS}
