"""Asks the server of a pool that runs out which sessions its connections wait for.

Depends on sessions, the housekeeper and a thread of its own; must not import a pool or driver. The server is
asked once in 30 s at most, over a connection of its own, and never in the thread or task of a caller. If it
does not answer, or has no connection left, nothing is reported.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from guardrails._pool.checkout import Checkout
from guardrails._pool.lock_waits import Blocker, CodeLocation, LockWait, Waiting, group, waiting_of
from guardrails._pool.sessions import ServerView, SessionId, own_sessions
from guardrails._runtime.fork import renew_after_fork
from guardrails._runtime.guard_log import log
from guardrails._runtime.housekeeper import run_later
from guardrails._runtime.threads import daemon
from guardrails._util.names import fields_of

__all__ = ["LONGEST_DELAY", "LockMonitor", "Question"]

LONGEST_DELAY = 1.0
"""Most seconds from the exhaustion of the pool to the question. Only a statement that runs for all this time
is a reason to ask. In a short burst all of them end sooner, and the one question of 30 s is not wasted."""

_LOOKS = 3
"""Looks for such a statement after one exhaustion."""

_INTERVAL = 30.0
"""Seconds between two questions."""

_FRESH = 5.0
"""Seconds for which an answer holds about work that passes no hook, whose end is not seen."""

_SHOWN = 3
"""Most groups of connections in one line of the log."""


class Question(Protocol):
    """Asks a server for its sessions, over a connection of its own.

    Attributes:
        kill: The statement that ends a session, with ``{}`` for its number.
    """

    kill: str

    def __call__(self) -> tuple[SessionId, ServerView]:
        """Returns the identity of the connection that asked, and the answer. Takes about a second at most."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A checkout whose session waits, and the work on it at that time."""

    waiting: Waiting
    work: object

    def holds(self, checkout: Checkout, age: float) -> bool:
        """Returns True if the checkout still does the same work."""
        if self.work:
            return checkout.under_way is self.work
        return age < _FRESH and bool(checkout.slots)


def _is_at_work(checkout: Checkout, before: Mapping[Any, object]) -> bool:
    """Returns True if a checkout still does the work that it did before. Work without hooks has no number."""
    if checkout not in before or before[checkout] is not checkout.under_way:
        return False
    return bool(checkout.under_way) or checkout.busy


class LockMonitor:
    """Finds out why the statements of one pool wait.

    Args:
        name: The guard's name.
        held: Returns the identities of the connections that are out, by their checkouts.
        location: Returns the code that holds a checkout.
        question: Asks the server.
        delay: Seconds from the exhaustion of the pool to the question; see `LONGEST_DELAY`.
        wanted: Returns False while the server must not be asked.
        observe: Is told each answer.
        remember: Is told the words about waits, for the status page.
    """

    def __init__(
        self,
        name: str,
        held: Callable[[], Mapping[Any, SessionId]],
        location: Callable[[Any], CodeLocation],
        question: Question,
        delay: float,
        wanted: Callable[[], bool],
        observe: Callable[[ServerView], None],
        remember: Callable[[str], None],
    ) -> None:
        self._name = name
        self._held = held
        self._location = location
        self._question = question
        self._delay = delay
        self._wanted = wanted
        self._observe = observe
        self._remember = remember
        self._next_question = self._asked = -math.inf
        self._planned = self._asking = False
        self._looks = 0
        self._reasons: dict[Any, object] = {}
        self._found: dict[Any, _Found] = {}
        renew_after_fork(self)

    def request(self) -> None:
        """Asks the server a little later, unless it was asked a short time ago. Never blocks."""
        if self._planned or time.monotonic() < self._next_question or not self._wanted():
            return
        self._planned = True
        self._looks = 0
        self._reasons = self._works()
        try:
            run_later(self._begin, self._delay)
        except RuntimeError:  # no new thread can be started while the interpreter shuts down
            self._planned = False

    def waits(self) -> tuple[LockWait, ...]:
        """Returns the connections that waited for locks when the server was asked, and still do."""
        age = time.monotonic() - self._asked
        valid = [found.waiting for checkout, found in self._found.items() if found.holds(checkout, age)]
        return group(valid, age) if valid else ()

    def blockers(self, checkout: Checkout) -> tuple[Blocker, ...]:
        """Returns the sessions that hold the lock for which a checkout waits; empty if none is known."""
        found = self._found.get(checkout)
        if found is None or not found.holds(checkout, time.monotonic() - self._asked):
            return ()
        return found.waiting.blockers

    def _works(self) -> dict[Any, object]:
        """Returns the work on each connection that is out, by its checkout."""
        return {checkout: checkout.under_way for checkout in self._held()}

    def _begin(self) -> float | None:
        """Starts the thread that asks, if there is a statement for which to ask. Returns None, or a delay."""
        before, self._reasons = self._reasons, self._works()
        if not any(_is_at_work(checkout, before) for checkout in self._reasons):
            self._looks += 1
            if self._looks < _LOOKS and self._reasons:
                return self._delay
        elif not self._asking:
            self._next_question = time.monotonic() + _INTERVAL
            thread = daemon("guardrails-lock-monitor", self._ask)
            self._asking = True
            try:
                thread.start()
            except RuntimeError:  # as in `request`
                self._asking = False
        self._planned, self._reasons = False, {}
        return None

    def _ask(self) -> None:
        try:
            before = {checkout: (known, checkout.under_way) for checkout, known in self._held().items()}
            asker, view = self._question()
            self._observe(view)
            now = {checkout: (known, checkout.under_way) for checkout, known in self._held().items()}
            self._asked = time.monotonic()
            # Only a checkout that was out before and after the answer can be one that it is about. One that
            # waited must still do the same work; the holder of a lock may do other work by now.
            out = {each: known for each, known in before.items() if now.get(each, (None,))[0] == known[0]}
            steady = {each for each, known in out.items() if now[each] == known}
            self._found = found = self._join(out, steady, asker, view)
        except Exception as error:  # noqa: BLE001 - a server that does not answer is no news
            log.debug("the server of %r could not be asked for locks: %s", self._name, type(error).__name__)
            return
        finally:
            self._asking = False
        if found:
            run_later(self._prune, _FRESH)
            self._log(group([each.waiting for each in found.values()], 0.0))

    def _prune(self) -> float | None:
        """Forgets waits that are over, with all that their checkouts refer to."""
        age = time.monotonic() - self._asked
        self._found = {each: found for each, found in self._found.items() if found.holds(each, age)}
        return _FRESH if self._found else None

    def _join(
        self,
        held: Mapping[Any, tuple[SessionId, object]],
        steady: set[Any],
        asker: SessionId,
        view: ServerView,
    ) -> dict[Any, _Found]:
        own = own_sessions({checkout: known for checkout, (known, _) in held.items()}, asker, view)
        locations = {session.pid: self._location(checkout) for checkout, session in own.items()}
        waiting = waiting_of(locations, view.sessions)
        return {
            checkout: _Found(waiting[session.pid], held[checkout][1])
            for checkout, session in own.items()
            if session.pid in waiting and checkout in steady
        }

    def _log(self, waits: tuple[LockWait, ...]) -> None:
        shown = [str(wait) for wait in waits[:_SHOWN]]
        more = len(waits) - len(shown)
        if more:
            shown.append(f"and {more} more lines of code")
        blockers = [each for wait in waits for each in wait.blockers if each.pid and not each.likely]
        strangers = {each.pid for each in blockers if not each.where}
        kills = ", ".join(self._question.kill.format(pid) for pid in sorted(strangers)[:_SHOWN])
        advice = f"; if nothing else ends it: {kills}" if kills else ""
        words = "; ".join(shown) + advice
        self._remember(words)
        log.warning("pool %r: %s", self._name, words, extra=fields_of(self._name))

    # --- forks ---------------------------------------------------------------------------------

    def pause(self, seconds: float) -> bool:  # noqa: ARG002
        """See ForkAware."""
        return True

    def unpause(self) -> None:
        """See ForkAware."""

    def reset_in_child(self) -> None:
        """Forgets all plans and answers: a child process has neither the threads nor the connections."""
        self._planned = self._asking = False
        self._reasons, self._found = {}, {}
