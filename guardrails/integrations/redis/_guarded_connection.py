"""The common part of guarded connections, synchronous and asyncio.

Depends on the arguments of commands and the command runner; must not do I/O or import pools.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any

import redis

from guardrails.integrations.redis._blocking import (
    BLOCKING_COMMANDS,
    NO_EVIDENCE,
    block_time,
    total_block_time,
)
from guardrails.integrations.redis._checkout import RedisCheckout
from guardrails.integrations.redis._commands import CommandRunner
from guardrails.integrations.redis._releases import RELEASE_COMMANDS, is_release, remember_script
from guardrails.integrations.redis._retries import RetryPolicy

__all__ = [
    "INSPECTED",
    "CleanUp",
    "Guarded",
    "IsRetryable",
    "Work",
    "derive",
    "derived",
    "is_guarded",
    "members",
]

Work = Callable[[], Any]
"""A piece of work; it returns a coroutine on asyncio."""

CleanUp = Callable[..., Any]
"""Closes the connection after a failure."""

IsRetryable = Callable[[Exception], bool] | None

_NEED_TIME = BLOCKING_COMMANDS | RELEASE_COMMANDS
"""First words of the commands that may get more time than others."""

INSPECTED = _NEED_TIME | NO_EVIDENCE
"""First words of the commands that are inspected before they are sent."""

_name = itemgetter(0)


class Guarded:
    """The methods and attributes that a guarded connection has in addition to its plain class.

    It is not a base class: `derive` copies its members into a class whose only base is the plain class.
    CPython lets a live connection change to such a class and back, and to no other ("object layout differs").

    Attributes:
        plain: The connection's class before the guard.
        work: Records the pieces of work.
        policy: Decides about retries.
        checkout: The checkout of the connection; None in the pool.
        takes_checkout: Whether the connection takes the checkout that its pool makes.
        close_on_release: Whether the connection is closed when it is released: it comes from the reserve, or
            a caller sent commands past redis-py's clients and may have left replies unread.
    """

    plain: Any
    work: CommandRunner
    policy: RetryPolicy
    is_connected: Any
    read_response: Any
    checkout: RedisCheckout | None = None
    takes_checkout = True
    close_on_release = False
    _counted = False
    _busy = _nested = False
    _connecting = False
    _read_replaced = False

    def guard(self) -> None:
        """Guards a connection on which no work runs."""
        self.policy = RetryPolicy(self.__dict__["retry"])
        self._counted = self.takes_checkout and self.is_connected

    # --- redis.retry.Retry ---------------------------------------------------------------------

    @property
    def retry(self) -> Any:
        """The object that redis-py passes every piece of work to: this connection itself."""
        return self

    @retry.setter
    def retry(self, policy: Any) -> None:
        self.__dict__["retry"] = policy  # under redis-py's name, for after a detach
        self.policy = RetryPolicy(policy)

    def get_retries(self) -> int:
        """See redis.retry.Retry."""
        return self.policy.max_retries

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

    # --- its checkout --------------------------------------------------------------------------

    def register_connect_callback(self, callback: Any) -> None:
        """Marks the connection as a subscriber's: only a PubSub calls this; see redis-py."""
        if self.checkout is not None:
            self.checkout.subscribe()
            self.work.succeed(self.checkout)
        self.plain.register_connect_callback(self, callback)

    def __del__(self, *args: Any) -> None:
        # A connection that is dropped and not released, as a forgotten PubSub's is.
        self._note_closed(None)
        if self.checkout is not None:
            self.checkout.release_slots()
            self.work.checkouts.remove(self.checkout, dropped=True)
        self.plain.__del__(self, *args)

    def _note_opened(self, started: float) -> None:
        """Counts the connection, which has been opened since ``started``."""
        if self.takes_checkout and not self._counted and self.is_connected:
            self._counted = True
            self.work.checkouts.figures.connected(started)

    def _note_closed(self, error: object) -> None:
        """Counts the connection, which is about to be closed, possibly for an error."""
        if self._counted:
            self._counted = False
            self.work.checkouts.figures.closed(invalidated=self._busy or error is not None)

    # --- its commands --------------------------------------------------------------------------

    def _may_retry_transaction(self) -> bool:
        """Returns True if a transaction that lost its connection has time left for a retry."""
        checkout = self.checkout
        return checkout is None or not self.work.is_late(checkout)

    def _inspect(self, args: tuple[Any, ...]) -> None:
        """Inspects a command before it is sent."""
        checkout = self.checkout
        if not self._busy:
            if checkout is not None and not checkout.subscriber:
                self.close_on_release = True
            return
        if args[0] in NO_EVIDENCE and checkout is not None and not (self._connecting or self._nested):
            checkout.proves = False  # except for a ping or login of redis-py's, inside the caller's work
        if args[0] in RELEASE_COMMANDS:
            remember_script(args)
            self._note_release([args])
        else:
            self._note_blocking(block_time(args))

    def _is_unwatch(self, args: tuple[Any, ...]) -> bool:
        """Returns True for the UNWATCH of a given-up transaction, which redis-py sends past its retries.

        Raises:
            ConnectionError: The connection is closed, so the server watches no keys any more.
        """
        if self._busy or args != ("UNWATCH",) or self.checkout is None or self.checkout.subscriber:
            return False
        if not self.work.enforces:
            return False
        if not self.is_connected:
            raise redis.ConnectionError("not sent: nothing is watched on a closed connection")
        return True

    def _read_next_with(self, within: Callable[[Callable[[], Any]], Any]) -> None:
        """Replaces the read of the next reply by ``within``, which gets the original read."""
        self._restore_read()  # an interrupt can leave an earlier replacement
        own, read = self.__dict__.get("read_response"), self.read_response
        # A release before the read closes the connection.
        closing, self.close_on_release = self.close_on_release, True

        def read_response() -> Any:
            self._restore_read()
            self.close_on_release = closing
            if own is not None:  # a tool had replaced it on this connection
                self.__dict__["read_response"] = own
            return within(read)

        self._read_replaced = True
        self.__dict__["read_response"] = read_response

    def _restore_read(self) -> None:
        if self._read_replaced:
            self._read_replaced = False
            del self.__dict__["read_response"]

    def pack_commands(self, commands: Iterable[Any]) -> Any:
        """Inspects the commands of a pipeline or a transaction; see redis-py."""
        commands = list(commands)
        if self._busy and not _NEED_TIME.isdisjoint(map(_name, commands)):  # in C, not one by one
            self._note_release([args for args in commands if args[0] not in {"MULTI", "EXEC"}])
            self._note_blocking(total_block_time(commands))
        return self.plain.pack_commands(self, commands)

    def _note_blocking(self, seconds: float | None) -> None:
        if seconds is not None and self.checkout is not None:
            self.work.note_blocking(self.checkout, seconds)
            self._continue_without_client()  # the server may have removed an element for it already
            self._start_blocking(self.checkout)

    def _note_release(self, commands: list[Any]) -> None:
        if self.checkout is None:
            return
        if is_release(commands):
            self._continue_without_client()
        if self.work.extend_for_release(self.checkout, commands):
            self._reschedule(self.checkout)

    def _continue_without_client(self) -> None:
        """Lets the command continue when the client of the request leaves. In a thread every command does."""

    def _start_blocking(self, checkout: RedisCheckout) -> None:
        raise NotImplementedError

    def _reschedule(self, checkout: RedisCheckout) -> None:
        raise NotImplementedError


_CLASS_ATTRIBUTES = frozenset({"__dict__", "__doc__", "__module__", "__qualname__", "__weakref__"})


def derive(plain: type, behaviour: type[Guarded], work: CommandRunner, **more: Any) -> Any:
    """Returns the guarded class for the connections of one plain class, with ``more`` members."""
    return derived(plain, members(behaviour) | {"plain": plain, "work": work} | more)


def members(behaviour: type) -> dict[str, Any]:
    """Returns the methods and attributes of a class and its bases, for `derived`."""
    own: dict[str, Any] = {}
    for cls in reversed(behaviour.__mro__[:-1]):
        own |= {name: part for name, part in vars(cls).items() if name not in _CLASS_ATTRIBUTES}
    return own


def derived(plain: type, parts: dict[str, Any]) -> type:
    """Returns a subclass with more members and the same name, which redis-py shows and logs."""
    kept = {"__module__": plain.__module__, "__qualname__": plain.__qualname__, "__doc__": plain.__doc__}
    return type(plain)(plain.__name__, (plain,), kept | parts)


def is_guarded(connection: object) -> bool:
    """Returns True if the connection has a guarded class."""
    return hasattr(type(connection), "plain")
