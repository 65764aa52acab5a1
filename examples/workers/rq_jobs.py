"""RQ: a refused job is enqueued again.

rq worker --worker-class rq.SimpleWorker --with-scheduler

RQ's default worker forks a process for each job, so a guard learns nothing from the jobs before: its
deadlines hold, but its circuit never opens. Let those workers share a verdict of a fleet, or run RQ's
SimpleWorker, as here.
"""

from __future__ import annotations

import math
import random

from rq import Retry, get_current_job
from summaries import summarize

from guardrails import DeadlineSpentError, RejectedError, deadline


def monthly_summary(month: int) -> int | Retry:
    """Returns RQ's order to enqueue it again, where a guard refused it."""
    job = get_current_job()
    limit = job.timeout if job is not None and job.timeout else 180
    with deadline(0.9 * limit):
        try:
            return summarize(month)
        except DeadlineSpentError:  # the job used up its own time, and would do so again
            raise
        except RejectedError as refused:
            seconds = (refused.retry_after or 1.0) * random.uniform(1, 2)
            return Retry(max=10, interval=math.ceil(seconds))
