"""What guarded connections of both flavours have in common. Does no I/O.

redis-py sends every command, pipeline, transaction and connect through ``connection.retry``. A guarded
connection is its own ``retry``: that is the one place that sees where a piece of work begins and ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import redis

from guardrails.integrations.redis._blocking import patience, patience_of_all
from guardrails.integrations.redis._retries import RetryPolicy
from guardrails.integrations.redis._work import Checkout, Work

__all__ = ["Guarded", "derive", "is_guarded"]


class Guarded:
    """What a guarded connection does besides, or instead of, what its plain class does.

    Not a base class: `derive` copies it into a class with one base, the plain one. CPython lets a live
    connection change to such a class and back, and to no other ("object layout differs").

    Attributes:
        plain: The class redis-py made the connection of.
        work: What the pieces of work are reported to.
        policy: When they are tried again.
        checkout: Whose connection it is; None in the pool.
        meets_callers: Whether it learns from the pool whom it is handed to.
        by_hand: Whether somebody sent commands past redis-py's clients, and may have left replies unread.
    """

    plain: Any
    work: Work
    policy: RetryPolicy
    checkout: Checkout | None = None
    meets_callers = True
    by_hand = False
    _busy = False
    _connecting = False

    def guard(self) -> None:
        """Takes over a connection that was made before. It must not be in the middle of anything."""
        self.policy = RetryPolicy(self.__dict__["retry"])

    # --- redis.retry.Retry ---------------------------------------------------------------------

    @property
    def retry(self) -> Any:
        """What redis-py hands every piece of work to: this connection itself."""
        return self

    @retry.setter
    def retry(self, policy: Any) -> None:
        self.__dict__["retry"] = policy  # under its own name, for the day the guard is taken off
        self.policy = RetryPolicy(policy)

    def get_retries(self) -> int:
        """See redis.retry.Retry."""
        return self.policy.most

    def update_supported_errors(self, errors: Iterable[type[Exception]]) -> None:
        """See redis.retry.Retry."""
        policy = self.policy.policy
        policy.update_supported_errors(errors)
        self.policy = RetryPolicy(policy)

    # --- whose it is ---------------------------------------------------------------------------

    def register_connect_callback(self, callback: Any) -> None:
        """See redis-py. Only a PubSub asks for it: from now on the connection is that subscriber's."""
        if self.checkout is not None:
            self.checkout.subscriber = True
            self.work.succeed(self.checkout)
        self.plain.register_connect_callback(self, callback)

    def __del__(self, *args: Any) -> None:
        # One that is dropped instead of released, such as a forgotten PubSub's.
        if self.checkout is not None:
            self.checkout.give_back()
        self.plain.__del__(self, *args)

    # --- what it does --------------------------------------------------------------------------

    def _asks_again(self) -> bool:
        """Whether a transaction that lost its connection may ask to be tried again: not when it is late."""
        checkout = self.checkout
        return checkout is None or not self.work.is_late(checkout)

    def _look_at(self, args: tuple[Any, ...]) -> None:
        """Looks at a command before it is sent."""
        checkout = self.checkout
        if self._busy:
            self._note_patience(patience(args))
        elif checkout is not None and not checkout.subscriber:
            if args == ("UNWATCH",):
                # A transaction is given up. On a server that does not answer this would wait once more,
                # and closing the connection forgets the watched keys just as well: so does redis-py then.
                raise redis.ConnectionError("not sent: the connection is closed instead")
            self.by_hand = True

    def pack_commands(self, commands: Iterable[Any]) -> Any:
        """See redis-py. What it packs is a pipeline or a transaction."""
        commands = list(commands)
        if self._busy:
            self._note_patience(patience_of_all(commands))
        return self.plain.pack_commands(self, commands)

    def _note_patience(self, seconds: float | None) -> None:
        if seconds is not None and self.checkout is not None:
            self.work.wait_patiently(self.checkout, seconds)
            self._be_patient(self.checkout)

    def _be_patient(self, checkout: Checkout) -> None:
        raise NotImplementedError


_OF_THE_CLASS = frozenset({"__dict__", "__doc__", "__module__", "__qualname__", "__weakref__"})


def derive(plain: type, behaviour: type[Guarded], work: Work) -> Any:
    """The guarded class for the connections of one plain class."""
    own: dict[str, Any] = {}
    for cls in reversed(behaviour.__mro__[:-1]):
        own |= {name: part for name, part in vars(cls).items() if name not in _OF_THE_CLASS}
    names = {"__module__": plain.__module__, "plain": plain, "work": work}
    return type(f"Guarded{plain.__name__}", (plain,), own | names)


def is_guarded(connection: object) -> bool:
    """Whether a connection is of a guarded class."""
    return hasattr(type(connection), "plain")
