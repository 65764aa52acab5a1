"""Bounds and records each piece of work on a connection of a guarded synchronous client.

Depends on redis-py's connections; must not import pools. redis-py sends every command, pipeline, transaction
and connect through ``connection.retry``. A guarded connection is its own ``retry``, so it sees where each
piece of work begins and ends.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import redis
from redis._parsers.socket import SocketBuffer

from guardrails.integrations.redis._checkout import RedisCheckout, current_checkout
from guardrails.integrations.redis._guarded_connection import INSPECTED, CleanUp, Guarded, IsRetryable, Work
from guardrails.integrations.redis._releases import GRACE
from guardrails.integrations.redis._replies import leaves_connection_clean
from guardrails.integrations.redis._socket import BoundedSocket, IOLimit

if TYPE_CHECKING:
    from redis.connection import AbstractConnection
else:
    AbstractConnection = object

__all__ = ["GuardedConnection"]

_Socket = socket.socket
"""Read at import, because tests replace ``socket.socket``."""


class GuardedConnection(Guarded, AbstractConnection):
    """The synchronous flavour of `Guarded`.

    Attributes:
        socket_class: The class of its socket.
    """

    socket_class = BoundedSocket
    _limit: IOLimit
    _opening = False

    def guard(self) -> None:
        """Guards a connection on which no work runs."""
        Guarded.guard(self)
        if isinstance(self._sock, BoundedSocket):  # from an earlier guard
            self._limit = self._sock.limit
            return
        self._limit = IOLimit()
        if isinstance(self._sock, _Socket):
            self._sock = self._wrap(self._sock)
            self._parser.on_connect(self)  # the parser keeps the socket, too

    # --- opening -------------------------------------------------------------------------------

    def connect(self) -> None:
        """Opens a closed connection, within the caller's deadline."""
        if self.takes_checkout and self.checkout is None:
            self.checkout = current_checkout.get()
        if self._sock is None:
            self._restore_read()
            self._connecting = True
            try:
                self.plain.connect(self)
            finally:
                self._connecting = False

    def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:  # noqa: FBT001, FBT002
        """Opens a closed connection; redis-py calls it instead of `connect` when it sends a command.

        Outside a piece of work, as in the health check of a PubSub, opening is a piece of work by itself.
        """
        if self._busy or self._connecting or self.checkout is None or self._sock is not None:
            if self._sock is not None:
                self.plain.connect_check_health(self, check_health, retry_socket_connect)
                return
            started = self.work.checkouts.figures.clock()
            try:
                self.plain.connect_check_health(self, check_health, retry_socket_connect)
            except BaseException:
                # redis-py leaves it open when a callback fails. The server then tells a cache of no change.
                if self._sock is not None:
                    self.disconnect()
                raise
            self._note_opened(started)
            return
        self._connecting = True
        try:
            self.call_with_retry(
                lambda: self.connect_check_health(check_health, retry_socket_connect=False),
                lambda error: self.disconnect(error=error),
            )
        finally:
            self._connecting = False

    def disconnect(self, *args: Any, **kwargs: Any) -> None:
        """See redis-py."""
        self._note_closed(kwargs.get("error"))
        self.plain.disconnect(self, *args, **kwargs)

    def _connect(self) -> Any:
        self._opening = True
        try:
            raw = self.plain._connect(self)  # noqa: SLF001 - redis-py's own hook
        finally:
            self._opening = False
        if self.takes_checkout and self.work.created is not None:
            self.work.created(self, raw)
        return self._wrap(raw)

    def _wrap(self, raw: Any) -> Any:
        # fakeredis answers from memory, through an object that is no socket and never waits.
        return (
            raw if not isinstance(raw, _Socket) else self.socket_class(raw, self._limit, self.socket_timeout)
        )

    @property
    def socket_timeout(self) -> float | None:
        """redis-py's setting in seconds; at most the time left while the socket is opened."""
        seconds = self._socket_timeout
        return self._limit.within(seconds) if self._opening else seconds

    @socket_timeout.setter
    def socket_timeout(self, seconds: float | None) -> None:
        self._socket_timeout = seconds

    @property
    def socket_connect_timeout(self) -> float | None:
        """See `socket_timeout`."""
        seconds = self._socket_connect_timeout
        return self._limit.within(seconds) if self._opening else seconds

    @socket_connect_timeout.setter
    def socket_connect_timeout(self, seconds: float | None) -> None:
        self._socket_connect_timeout = seconds

    @property
    def is_working(self) -> bool:
        """True while a piece of work sends or reads."""
        return self._busy

    def can_read(self, timeout: float = 0) -> bool:
        """Returns True if there is something to read.

        Raises:
            ConnectionError: The connection is about to leave the pool and has unread data. redis-py 8 checks
                the same, but not while maintenance notifications are on, as they are by default.
        """
        ready = self.has_data(timeout)
        if ready and not self._busy and current_checkout.get() is not None:
            raise redis.ConnectionError("Connection has data")
        return ready

    def has_data(self, timeout: float = 0) -> bool:
        """Returns True if there is something to read, or the connection was closed."""
        # One poll usually finds nothing; redis-py needs four system calls and an exception for that.
        sock = self._sock
        if (
            timeout == 0
            and isinstance(sock, BoundedSocket)
            and sock.poll is not None
            and not self.has_buffered_data()
            and not sock.poll(0)
        ):
            return False
        ready: bool = self.plain.can_read(self, timeout)
        return ready

    def has_buffered_data(self) -> bool:
        """Returns False if the parser has read nothing ahead. For the thread that reads."""
        parser: Any = self._parser
        reader = getattr(parser, "_reader", None)  # of hiredis
        if reader is not None:
            return bool(reader.has_data())
        buffer = getattr(parser, "_buffer", None)
        return not isinstance(buffer, SocketBuffer) or bool(buffer.unread_bytes())

    # --- working -------------------------------------------------------------------------------

    def call_with_retry(
        self,
        do: Work,
        fail: CleanUp,
        is_retryable: IsRetryable = None,
        with_failure_count: bool = False,  # noqa: FBT001, FBT002 - redis-py's signature
    ) -> Any:
        """Does one piece of work, with the user's retries; see ``redis.retry.Retry``.

        Raises:
            RejectedError: It did not start.
            CallTimeoutError: Its deadline passed. The connection is closed.
        """
        checkout = self.checkout
        if checkout is None or (checkout.subscriber and not self._connecting):
            return self.policy.run(do, fail, is_retryable, with_failure_count)
        if self._busy:  # a connect or a ping inside a piece of work, which is retried as a whole
            return self._try_once(do, fail, counts=with_failure_count)
        self.work.begin(checkout)
        self._busy = True
        self._limit.at = checkout.at
        failures = 0
        try:
            while True:
                try:
                    result = do()
                    break
                except self.policy.errors as error:
                    failures += 1
                    plain = not self.work.enforces
                    delay = self.policy.delay(failures, self._limit.at, as_asked=plain)
                    self._clean_up(error, failures, fail, counts=with_failure_count)
                    if delay is None:
                        raise
                time.sleep(delay)
        except BaseException as error:
            self._fail(checkout, error)
            raise
        finally:
            self._busy = self._limit.blocking = False
            self._limit.at = None
        only_opened = self._connecting and current_checkout.get() is checkout
        if not only_opened and self.work.succeed(checkout, result):
            self.disconnect()
        return result

    def _fail(self, checkout: RedisCheckout, error: BaseException) -> None:
        if not leaves_connection_clean(error) or self.work.classifier.must_close(error):
            self.disconnect()
        self.work.fail(checkout, error, connecting=self._connecting)

    def _try_once(self, do: Work, fail: CleanUp, *, counts: bool) -> Any:
        outside, self._nested = self._nested, True
        try:
            return do()
        except self.policy.errors as error:
            self._clean_up(error, 1, fail, counts=counts)
            raise
        finally:
            self._nested = outside

    def _clean_up(self, error: Exception, failures: int, fail: CleanUp, *, counts: bool) -> None:
        try:
            fail(error, failures) if counts else fail(error)
        except redis.WatchError as unwatched:  # the transaction asks for a retry
            if self._may_retry_transaction():
                raise unwatched from error

    def send_command(self, *args: Any, **kwargs: Any) -> None:
        """See redis-py."""
        if not self._busy or args[0] in INSPECTED:
            if self._is_unwatch(args):
                self._unwatch()
                return
            self._inspect(args)
        self.plain.send_command(self, *args, **kwargs)

    def _unwatch(self) -> None:
        """Sends UNWATCH and reads its reply within `GRACE` seconds.

        Raises:
            ConnectionError: It took longer. redis-py then closes the connection, which has the same effect.
        """
        until = time.monotonic() + GRACE
        self._within(until, lambda: self.plain.send_command(self, "UNWATCH", check_health=False))
        self._read_next_with(lambda read: self._within(until, read))

    def _within(self, until: float, work: Callable[[], Any]) -> Any:
        self._limit.at = until
        try:
            return work()
        except redis.TimeoutError as error:
            raise redis.ConnectionError("UNWATCH was not answered in time") from error
        finally:
            self._limit.at = None

    def _start_blocking(self, checkout: RedisCheckout) -> None:
        if not self.work.enforces:
            return
        self._limit.blocking = True
        self._reschedule(checkout)

    def _reschedule(self, checkout: RedisCheckout) -> None:
        self._limit.at = checkout.at
        if isinstance(self._sock, BoundedSocket):
            self._sock.reset_timeout()
