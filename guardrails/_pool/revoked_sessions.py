"""Has a server end the sessions of connections that were taken back after ``max_idle_hold``.

To close a connection is enough, unless the network or a proxy loses the close. Then its session and locks
would stay for hours. So the server is asked a second later, over another connection, and ends what is left.

Depends on sessions, the housekeeper and a thread of its own; must not import a pool or driver.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from guardrails._pool.sessions import SessionId
from guardrails._runtime.fork import renew_after_fork
from guardrails._runtime.guard_log import log
from guardrails._runtime.housekeeper import run_later
from guardrails._runtime.threads import daemon
from guardrails._util.names import fields_of

__all__ = ["RevokedSession", "RevokedSessions"]

_DELAY = 1.0
"""Seconds from a revocation to the question: a server that sees the close has ended the session by then."""

_INTERVAL = 5.0
"""Minimum seconds between two questions."""

_GIVE_UP_AFTER = 60.0
"""Seconds after which a server that does not answer is asked no more."""

_MOST = 1000
"""Maximum number of sessions that wait for the question."""

_DRIFT = 0.001
"""Share by which two clocks may differ: both may be adjusted by half of it."""


class RevokedSession(NamedTuple):
    """The session of a connection that was taken back. Its times are durations in seconds until ``at``.

    Attributes:
        id: Its identity, as the driver knew it.
        at: When the durations were measured, on ``time.monotonic``.
        idle: Time since the last work on it.
        youngest: Time since it was open.
        oldest: Time since its opening began.
        login: What else is needed to connect to its server, hashable and equal for one server; None where
            the question knows all.
    """

    id: SessionId
    at: float
    idle: float
    youngest: float
    oldest: float
    login: Any = None

    @property
    def passed(self) -> float:
        """Seconds since ``at``."""
        return time.monotonic() - self.at

    @property
    def most_passed(self) -> float:
        """The most seconds that another clock may have counted since ``at``."""
        return self.passed * (1 + _DRIFT)

    def ages(self, spare: float) -> tuple[float, float]:
        """Returns the least and the greatest age in seconds that the session can have now.

        It was this connection's when the last work ended. So no session that has its number later is as old.

        Args:
            spare: Seconds until the server compares.
        """
        passed, slack = self.passed, 0.1 + self.oldest * _DRIFT
        least = max(self.youngest - slack, self.idle * (1 - _DRIFT))
        return passed + least, passed + self.oldest + slack + spare


class RevokedSessions:
    """The sessions of one pool's revoked connections.

    Args:
        name: The guard's name.
        session_of: Returns the identity of a connection's session; None if it is unknown.
        end: Asks the server of sessions with one login and ends those that are left; returns their number.
            It takes about a second at most.
    """

    def __init__(
        self,
        name: str,
        session_of: Callable[[Any], SessionId | None],
        end: Callable[[Sequence[RevokedSession]], int],
    ) -> None:
        self._name = name
        self._session_of = session_of
        self._end = end
        self._waiting: deque[RevokedSession] = deque(maxlen=_MOST)
        self._next_question = 0.0
        self._question = (
            threading.Lock()
        )  # held from the planning of a question to its end; no thread waits for it
        renew_after_fork(self)

    def identify(
        self, own: Any, idle: float, youngest: float, oldest: float, login: Any = None
    ) -> Callable[[], object]:
        """Reads the identity of the session of a connection on which nothing runs, without a round trip.

        Args:
            own: The driver's own connection.
            idle: See `RevokedSession`.
            youngest: See there.
            oldest: See there.
            login: See there.

        Returns:
            The function to call when the connection is closed. It never blocks; the server is asked later.
        """
        known = self._session_of(own)
        if known is None:
            return bool
        idle = idle if 0 <= idle <= youngest else 0.0  # the guard's clock may be anything
        return partial(self._watch, RevokedSession(known, time.monotonic(), idle, youngest, oldest, login))

    def _watch(self, session: RevokedSession) -> None:
        self._waiting.append(session)
        self._plan()

    def _plan(self) -> None:
        if self._question.acquire(blocking=False):
            with suppress(RuntimeError):  # no new thread can be started while the interpreter shuts down
                run_later(self._start, max(_DELAY, self._next_question - time.monotonic()))

    def _start(self) -> None:
        """Starts the thread that asks: a server that does not answer must not hold the housekeeper up."""
        try:
            daemon("guardrails-revoked-sessions", self._ask).start()
        except RuntimeError:  # as in `_plan`
            self._question.release()

    def _ask(self) -> None:
        by_server = defaultdict[Any, list[RevokedSession]](list)
        for _ in range(len(self._waiting)):
            session = self._waiting.popleft()
            by_server[session.login].append(session)
        self._next_question = time.monotonic() + _INTERVAL
        ended = 0
        for sessions in by_server.values():
            try:
                ended += self._end(sessions)
            except Exception as error:  # noqa: BLE001 - it is asked again
                log.debug(
                    "the server of %r could not be asked for sessions: %s", self._name, type(error).__name__
                )
                self._wait_on(sessions)
        if ended:
            log.warning(
                "guard %r: the server had not seen that connections that were taken back are closed; "
                "their sessions were ended over another connection (%d)",
                self._name,
                ended,
                extra=fields_of(self._name),
            )
        self._question.release()
        if self._waiting:
            self._plan()

    def _wait_on(self, sessions: Sequence[RevokedSession]) -> None:
        since = time.monotonic() - _GIVE_UP_AFTER
        young = [session for session in sessions if session.at > since]
        self._waiting.extend(young)
        if len(young) < len(sessions):
            log.warning(
                "guard %r: the server could not be asked whether the sessions of connections that were taken "
                "back have ended (%d); if not, they keep their locks until its TCP keepalive ends them",
                self._name,
                len(sessions) - len(young),
                extra=fields_of(self._name),
            )

    # --- forks ---------------------------------------------------------------------------------

    def pause(self, seconds: float) -> bool:  # noqa: ARG002
        """See ForkAware."""
        return True

    def unpause(self) -> None:
        """See ForkAware."""

    def reset_in_child(self) -> None:
        """Forgets the sessions: those of the parent process are not this one's."""
        self._waiting.clear()
        self._question = threading.Lock()
