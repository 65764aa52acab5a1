"""What guarded connections of both flavours have in common. Does no I/O.

redis-py sends every command, pipeline, transaction and connect through ``connection.retry``. A guarded
connection is its own ``retry``: that is the one place that sees where a piece of work begins and ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any

import redis

from guardrails.integrations.redis._blocking import BLOCKING, PROVES_NOTHING, patience, patience_of_all
from guardrails.integrations.redis._checkout import RedisCheckout
from guardrails.integrations.redis._commands import CommandRunner
from guardrails.integrations.redis._releases import GIVING_BACK, remember
from guardrails.integrations.redis._retries import RetryPolicy

__all__ = ["LOOKED_AT", "Guarded", "derive", "derived", "is_guarded"]

NOTEWORTHY = BLOCKING | GIVING_BACK
"""First words of the commands that get more time than others, and are looked at before they are sent."""

LOOKED_AT = NOTEWORTHY | PROVES_NOTHING
"""The same, and those whose success is no evidence."""

_name = itemgetter(0)


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
        closes: Whether it is closed when it is given back: it is not one of the pool's, or somebody sent
            commands past redis-py's clients and may have left replies unread.
    """

    plain: Any
    work: CommandRunner
    policy: RetryPolicy
    is_connected: Any
    read_response: Any
    checkout: RedisCheckout | None = None
    meets_callers = True
    closes = False
    _busy = _nested = False
    _connecting = False
    _reads_once = False

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

    def update_retries(self, value: int) -> None:
        """See redis.retry.Retry."""
        policy = self.policy.policy
        policy.update_retries(value)
        self.policy = RetryPolicy(policy)

    @property
    def _retries(self) -> Any:
        return self.policy.policy._retries  # noqa: SLF001 - what redis-py's own code reads of a Retry

    @property
    def _backoff(self) -> Any:
        return self.policy.policy._backoff  # noqa: SLF001

    @property
    def _supported_errors(self) -> Any:
        return self.policy.policy._supported_errors  # noqa: SLF001

    # --- whose it is ---------------------------------------------------------------------------

    def register_connect_callback(self, callback: Any) -> None:
        """See redis-py. Only a PubSub asks for it: from now on the connection is that subscriber's."""
        if self.checkout is not None:
            self.checkout.subscriber = True
            self.checkout.proves = False
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
        if not self._busy:
            self.closes = self.closes or (checkout is not None and not checkout.subscriber)
            return
        if args[0] in PROVES_NOTHING and checkout is not None and not (self._connecting or self._nested):
            checkout.proves = (
                False  # what redis-py asks by itself in the middle of a caller's work is left out
            )
        if args[0] in GIVING_BACK:
            remember(args)
            self._note_giving_back([args])
        else:
            self._note_patience(patience(args))

    def _unwatches(self, args: tuple[Any, ...]) -> bool:
        """True if redis-py gives a transaction up: it sends this past its retries.

        Raises:
            ConnectionError: The connection is closed, so the server has forgotten the watched keys.
        """
        if self._busy or args != ("UNWATCH",) or self.checkout is None or self.checkout.subscriber:
            return False
        if not self.is_connected:
            raise redis.ConnectionError("not sent: nothing is watched on a closed connection")
        return True

    def _once_read(self, within: Callable[[Callable[[], Any]], Any]) -> None:
        """Has the next answer read by ``within``, which is given what would read it."""
        self._read_plainly()  # after an interrupt
        own, read = self.__dict__.get("read_response"), self.read_response
        closes, self.closes = self.closes, True  # if it is given back with the answer unread

        def read_response() -> Any:
            self._read_plainly()
            self.closes = closes
            if own is not None:  # somebody has replaced it on this one connection
                self.__dict__["read_response"] = own
            return within(read)

        self._reads_once = True
        self.__dict__["read_response"] = read_response

    def _read_plainly(self) -> None:
        if self._reads_once:
            self._reads_once = False
            del self.__dict__["read_response"]

    def pack_commands(self, commands: Iterable[Any]) -> Any:
        """See redis-py. What it packs is a pipeline or a transaction."""
        commands = list(commands)
        if self._busy and not NOTEWORTHY.isdisjoint(map(_name, commands)):  # no step of Python's for each
            self._note_giving_back([args for args in commands if args[0] not in {"MULTI", "EXEC"}])
            self._note_patience(patience_of_all(commands))
        return self.plain.pack_commands(self, commands)

    def _note_patience(self, seconds: float | None) -> None:
        if seconds is not None and self.checkout is not None:
            self.work.wait_patiently(self.checkout, seconds)
            self._be_patient(self.checkout)

    def _note_giving_back(self, commands: list[Any]) -> None:
        if self.checkout is not None and self.work.prolong(self.checkout, commands):
            self._reschedule(self.checkout)

    def _be_patient(self, checkout: RedisCheckout) -> None:
        raise NotImplementedError

    def _reschedule(self, checkout: RedisCheckout) -> None:
        raise NotImplementedError


_OF_THE_CLASS = frozenset({"__dict__", "__doc__", "__module__", "__qualname__", "__weakref__"})


def derive(plain: type, behaviour: type[Guarded], work: CommandRunner) -> Any:
    """The guarded class for the connections of one plain class."""
    own: dict[str, Any] = {}
    for cls in reversed(behaviour.__mro__[:-1]):
        own |= {name: part for name, part in vars(cls).items() if name not in _OF_THE_CLASS}
    return derived(plain, own | {"plain": plain, "work": work})


def derived(plain: type, parts: dict[str, Any]) -> type:
    """A class with more parts, by the same name: what redis-py shows and logs stays as it was."""
    kept = {"__module__": plain.__module__, "__qualname__": plain.__qualname__, "__doc__": plain.__doc__}
    return type(plain)(plain.__name__, (plain,), kept | parts)


def is_guarded(connection: object) -> bool:
    """Whether a connection is of a guarded class."""
    return hasattr(type(connection), "plain")
