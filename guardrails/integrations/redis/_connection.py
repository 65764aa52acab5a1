"""Connections of a guarded synchronous client: each piece of work bounded and reported. Knows no pools.

redis-py sends every command, pipeline, transaction and connect through ``connection.retry``. A guarded
connection is its own ``retry``: that is the one place that sees where a piece of work begins and ends.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import redis
from redis._parsers.socket import SocketBuffer

from guardrails.integrations.redis._checkout import RedisCheckout, under_way
from guardrails.integrations.redis._guarded_connection import LOOKED_AT, Guarded
from guardrails.integrations.redis._releases import GRACE
from guardrails.integrations.redis._replies import leaves_clean
from guardrails.integrations.redis._socket import BoundedSocket, Bounds

if TYPE_CHECKING:
    from redis.connection import AbstractConnection
else:
    AbstractConnection = object

__all__ = ["GuardedConnection"]

_Socket = socket.socket
"""As it was when this was imported: tests put something else in its place."""


class GuardedConnection(Guarded, AbstractConnection):
    """See Guarded."""

    _bounds: Bounds
    _opening = False

    def guard(self) -> None:
        """Takes over a connection. It must not be in the middle of anything."""
        Guarded.guard(self)
        if isinstance(self._sock, BoundedSocket):  # from an earlier guard
            self._bounds = self._sock.bounds
            return
        self._bounds = Bounds()
        if isinstance(self._sock, _Socket):
            self._sock = self._bounded(self._sock)
            self._parser.on_connect(self)  # it keeps the socket, too

    # --- opening -------------------------------------------------------------------------------

    def connect(self) -> None:
        """Opens the connection if it is not open, within the time its caller has."""
        if self.meets_callers and self.checkout is None:
            self.checkout = under_way.get()
        if self._sock is None:
            self._read_plainly()
            self._connecting = True
            try:
                self.plain.connect(self)
            finally:
                self._connecting = False

    def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:  # noqa: FBT001, FBT002
        """See redis-py, which comes here past `connect` when it sends something on a closed connection.

        Outside a piece of work, as in the health check of a PubSub, opening it is one by itself.
        """
        if self._busy or self._connecting or self.checkout is None or self._sock is not None:
            self.plain.connect_check_health(self, check_health, retry_socket_connect)
            return
        self._connecting = True
        try:
            self.call_with_retry(
                lambda: self.plain.connect_check_health(self, check_health, retry_socket_connect=False),
                lambda error: self.disconnect(error=error),  # type: ignore[no-untyped-call]
            )
        finally:
            self._connecting = False

    def _connect(self) -> Any:
        self._opening = True
        try:
            raw = self.plain._connect(self)  # noqa: SLF001 - redis-py's own hook
        finally:
            self._opening = False
        return self._bounded(raw)

    def _bounded(self, raw: Any) -> Any:
        # fakeredis answers from memory, through something that is no socket and never waits.
        return raw if not isinstance(raw, _Socket) else BoundedSocket(raw, self._bounds, self.socket_timeout)

    @property
    def socket_timeout(self) -> float | None:
        """What redis-py was told, or what is left of the deadline while the socket is opened."""
        seconds = self._socket_timeout
        return self._bounds.within(seconds) if self._opening else seconds

    @socket_timeout.setter
    def socket_timeout(self, seconds: float | None) -> None:
        self._socket_timeout = seconds

    @property
    def socket_connect_timeout(self) -> float | None:
        """See ``socket_timeout``."""
        seconds = self._socket_connect_timeout
        return self._bounds.within(seconds) if self._opening else seconds

    @socket_connect_timeout.setter
    def socket_connect_timeout(self, seconds: float | None) -> None:
        self._socket_connect_timeout = seconds

    def can_read(self, timeout: float = 0) -> bool:
        """See redis-py. A connection on its way out of the pool has nothing to read, or is dirty.

        redis-py 8 makes the same check, and skips it while maintenance notifications are on, which they
        are unless they are switched off.
        """
        # One look says mostly that there is nothing; redis-py needs four system calls and an exception.
        sock, buffer = self._sock, getattr(self._parser, "_buffer", None)
        if (
            timeout == 0
            and isinstance(buffer, SocketBuffer)
            and isinstance(sock, BoundedSocket)
            and sock.poll is not None
            and not buffer.unread_bytes()
            and not sock.poll(0)
        ):
            return False
        ready: bool = self.plain.can_read(self, timeout)
        if ready and not self._busy and under_way.get() is not None:
            raise redis.ConnectionError("Connection has data")
        return ready

    # --- working -------------------------------------------------------------------------------

    def call_with_retry(
        self,
        do: Callable[[], Any],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,  # noqa: FBT001, FBT002 - redis-py's signature
    ) -> Any:
        """Does one piece of work; redis-py's name for it.

        Raises:
            RejectedError: It did not start.
            CallTimeoutError: Its time was up. The connection is closed.
        """
        checkout = self.checkout
        if checkout is None or (checkout.subscriber and not self._connecting):
            return self.policy.run(do, fail, is_retryable, with_failure_count)
        if self._busy:  # a connect or a ping inside a larger piece of work, which is tried again as a whole
            return self._once(do, fail, counts=with_failure_count)
        self.work.begin(checkout)
        self._busy = True
        self._bounds.at = checkout.at
        failures = 0
        try:
            while True:
                try:
                    result = do()
                    break
                except self.policy.errors as error:
                    failures += 1
                    pause = self.policy.pause(failures, self._bounds.at)
                    self._clean_up(error, failures, fail, counts=with_failure_count)
                    if pause is None:
                        raise
                time.sleep(pause)
        except BaseException as error:
            self._give_up(checkout, error)
            raise
        finally:
            self._busy = self._bounds.patient = False
            self._bounds.at = None
        if not self._connecting or under_way.get() is not checkout:  # else it is the first half of something
            self.work.succeed(checkout, result)
        return result

    def _give_up(self, checkout: RedisCheckout, error: BaseException) -> None:
        if not leaves_clean(error):
            self.disconnect()  # type: ignore[no-untyped-call]
        self.work.fail(checkout, error, connecting=self._connecting)

    def _once(self, do: Callable[[], Any], fail: Callable[..., Any], *, counts: bool) -> Any:
        outside, self._nested = self._nested, True
        try:
            return do()
        except self.policy.errors as error:
            self._clean_up(error, 1, fail, counts=counts)
            raise
        finally:
            self._nested = outside

    def _clean_up(self, error: Exception, failures: int, fail: Callable[..., Any], *, counts: bool) -> None:
        try:
            fail(error, failures) if counts else fail(error)
        except redis.WatchError as unwatched:  # a transaction asks to be tried again
            if self._asks_again():
                raise unwatched from error

    def send_command(self, *args: Any, **kwargs: Any) -> None:
        """See redis-py."""
        if not self._busy or args[0] in LOOKED_AT:
            if self._unwatches(args):
                self._unwatch()
                return
            self._look_at(args)
        self.plain.send_command(self, *args, **kwargs)

    def _unwatch(self) -> None:
        """Sends UNWATCH, and has its answer read, in a little time of its own.

        Raises:
            ConnectionError: It took longer. redis-py then closes the connection, which has the same effect.
        """
        until = time.monotonic() + GRACE
        self._in_time(until, lambda: self.plain.send_command(self, "UNWATCH", check_health=False))
        self._once_read(lambda read: self._in_time(until, read))

    def _in_time(self, until: float, work: Callable[[], Any]) -> Any:
        self._bounds.at = until
        try:
            return work()
        except redis.TimeoutError as error:
            raise redis.ConnectionError("UNWATCH was not answered in time") from error
        finally:
            self._bounds.at = None

    def _be_patient(self, checkout: RedisCheckout) -> None:
        self._bounds.patient = True
        self._reschedule(checkout)

    def _reschedule(self, checkout: RedisCheckout) -> None:
        self._bounds.at = checkout.at
        if isinstance(self._sock, BoundedSocket):
            self._sock.reconsider()
