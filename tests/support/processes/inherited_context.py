"""With -X thread_inherit_context=1 a thread inherits its starter's context; the library's own must not."""

from __future__ import annotations

import queue
import sys
import threading

from guardrails import Guard, deadline
from guardrails._dbapi.connecting import InThread
from guardrails._dbapi.watchdog import watch
from guardrails._runtime.housekeeper import run_later
from guardrails._runtime.scope import current

seen: queue.SimpleQueue[object] = queue.SimpleQueue()


class Stop:
    """Notes the scope in which it is told to stop a call."""

    def cancel_target(self, connection):
        """Called by the watchdog."""
        return connection

    def cancel(self, target, within):
        """Sent by a thread of its own."""
        seen.put(current())

    def kill(self, connection):
        """Sent by the watchdog."""
        seen.put(current())

    cancel_again = retire = cancel


def main():
    """Everything that starts a thread is done for the first time inside a call under a deadline."""
    guard = Guard("db", max_concurrent_calls=1)
    with deadline(60), guard.call():
        users: list[object] = []
        thread = threading.Thread(target=lambda: users.append(current()))
        thread.start()
        thread.join()
        inherits = getattr(sys.flags, "thread_inherit_context", 0)
        assert (users != [None]) == bool(inherits), "the switch works, or the interpreter has none"
        run_later(lambda: seen.put(current()), 0)
        call = watch(Stop(), None, 0.0)
        opening = InThread(lambda: seen.put(current()), "key", 1)
        opening.start(lambda _: None)
        scopes = [seen.get(timeout=30) for _ in range(5)]  # cancel, cancel_again and kill are three
        call.end()
    assert scopes == [None] * 5, scopes


if __name__ == "__main__":
    main()
    print("fine")
