"""A base class for Celery's tasks: it retries what a guard refused, and turns time limits into deadlines."""

from __future__ import annotations

import contextlib
import random
from typing import Any

try:
    from celery import Task
except ImportError as error:
    raise ImportError("Celery is missing: pip install celery") from error

from guardrails._runtime.scope import deadline
from guardrails.errors import DeadlineSpentError, RejectedError

__all__ = ["GuardedTask"]

_ROOM = 0.1
"""Share of a time limit that is left after the deadline, at most a second, for the task to end by itself."""


class GuardedTask(Task):  # type: ignore[misc]  # Celery has no types
    """A task that is sent again when a guard refuses it, and that has a deadline.

    For all tasks of an application: ``Celery(task_cls="guardrails.integrations.celery:GuardedTask")``. For
    one of them: ``@app.task(base=GuardedTask)``.

    A `RejectedError` that leaves the task becomes a retry. The call that was refused had not begun; what the
    task did before, such as a first transaction, is done again, so it must be safe to repeat. The
    countdown is at least the error's ``retry_after``, and a random time besides, which grows with each
    retry: up to ``default_retry_delay`` seconds for the first one, twice as many for each following one, at
    most ``retry_backoff_max``. After ``max_retries`` the error is raised.

    A `CallTimeoutError` is raised at once, because its effect is unknown. Name it in Celery's
    ``autoretry_for`` where the task may run twice. A `DeadlineSpentError` is raised, too: the task used up
    its own time.

    The task's soft time limit, else its hard one, is a `deadline` for all guarded work in it, less a tenth,
    at most a second. It also holds where Celery enforces no limit: in threads and greenlets, and in tasks
    that run eagerly. A limit that is given to ``celery worker`` only is not known here.

    Attributes:
        max_retries: As Celery's; 10.
        default_retry_delay: As Celery's; 10 seconds.
        retry_backoff_max: As Celery's; 600 seconds.
    """

    abstract = True
    max_retries = 10
    default_retry_delay = 10
    retry_backoff_max = 600

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the task. Outside a worker, called as a function, it is the function alone."""
        if self.request.called_directly:
            return super().__call__(*args, **kwargs)
        with self._deadline():
            try:
                return self.run(*args, **kwargs)
            except DeadlineSpentError:
                raise
            except RejectedError as refused:
                raise self.retry(exc=refused, countdown=self._countdown(refused)) from refused

    def _deadline(self) -> contextlib.AbstractContextManager[object]:
        hard, soft = self.request.timelimit or (None, None)
        limit = soft or self.soft_time_limit or hard or self.time_limit
        return contextlib.nullcontext() if limit is None else deadline(limit - min(1.0, _ROOM * limit))

    def _countdown(self, refused: RejectedError) -> float:
        longest = min(self.default_retry_delay * 2.0 ** min(self.request.retries, 64), self.retry_backoff_max)
        # All tasks of an outage are refused within a moment; they must not come back in one.
        spread = random.uniform(0.1, 1.0) * longest  # noqa: S311 - no secret
        return (refused.retry_after or 0.0) + float(spread)
