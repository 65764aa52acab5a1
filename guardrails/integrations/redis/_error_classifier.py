"""Classifies the errors of a client's commands: a failure of the server, an answer, or no evidence.

Depends on the guard and replies; must not import connections or pools.
"""

from __future__ import annotations

from collections.abc import Callable

import redis

from guardrails._core.outcome import Outcome
from guardrails._guard.guard import Guard
from guardrails._runtime.guard_log import LOGIN_REFUSED, READ_ONLY
from guardrails._runtime.outcomes import classify
from guardrails.integrations.redis._replies import errors_in, is_read_only, refuses_login, server_failed

__all__ = ["ReplyClassifier"]

_ELSEWHERE = {redis.exceptions.ClusterDownError, redis.exceptions.MovedError}
"""Errors of a node that works: another node has the slot, or that node is missing."""

_NOT_SENT = (redis.DataError, ArithmeticError, TypeError, ValueError)


class ReplyClassifier:
    """Classifies the errors of one client's commands.

    Args:
        guard: The client's guard.

    Attributes:
        for_replica: True if the client is for a replica, which takes no writes.
        in_cluster: True for a node of a cluster. ``CLUSTERDOWN`` is no evidence then: the node works, and
            another one is missing.
        moved: Called when the server refuses writes, so that the pool connects to the new primary.
        suspect: Called after each failure, so that the pool looks up the server's name again.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._report = guard.call_settings.gates[-1].report
        self.for_replica = self.in_cluster = False
        self.moved: Callable[[], object] = bool
        self.suspect: Callable[[], object] = bool

    def outcome(self, error: BaseException, *, connecting: bool = False) -> Outcome:
        """Returns the outcome of work that raised, and notes a known cause of its failure.

        Args:
            error: What it raised.
            connecting: True if the connection was still being opened.
        """
        if self._refuses_writes(error):
            self._report.note_cause(READ_ONLY)
            self.moved()
        elif connecting and refuses_login(error):
            self._report.note_cause(LOGIN_REFUSED)
        policy = self._guard.call_settings.policy
        outcome = classify(error, None if policy is None else policy.is_failure)
        if outcome is not Outcome.FAILURE or (policy is not None and policy.is_failure is not None):
            return outcome
        if self.in_cluster and type(error) in _ELSEWHERE:
            self.suspect()
            return Outcome.SUCCESS if type(error) is redis.exceptions.MovedError else Outcome.NEUTRAL
        if not server_failed(error, connecting=connecting) or (self.for_replica and is_read_only(error)):
            return Outcome.ABANDONED if isinstance(error, _NOT_SENT) else Outcome.SUCCESS
        self.suspect()
        self._guard.call_settings.note_error(error)
        return Outcome.FAILURE

    def outcome_of_replies(self, replies: list[object]) -> Outcome:
        """Returns the outcome of replies, some of which may be errors."""
        outcomes = {self.outcome(error) for error in errors_in(replies)}
        if outcomes <= {Outcome.SUCCESS, Outcome.NEUTRAL}:
            return Outcome.NEUTRAL if Outcome.NEUTRAL in outcomes else Outcome.SUCCESS
        return Outcome.FAILURE

    def must_close(self, error: BaseException) -> bool:
        """Returns True if the connection leads to a replica now, and must be closed."""
        return self._refuses_writes(error) and self._guard.mode == "enforce"

    def _refuses_writes(self, error: BaseException) -> bool:
        return not self.for_replica and is_read_only(error)
