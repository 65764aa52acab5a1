"""Bounds and records each piece of work on a connection of a guarded asyncio client.

Depends on redis-py's asyncio connections; must not import pools. One timer bounds a piece of work: it cancels
the task at the deadline, and redis-py closes the connection that it was reading. `_connection` is the
synchronous twin.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

import redis

from guardrails._runtime.loop_timers import timers
from guardrails._runtime.task_timeout import TaskTimeout, cancel_at
from guardrails.integrations.redis._checkout import RedisCheckout, current_checkout
from guardrails.integrations.redis._guarded_connection import INSPECTED, CleanUp, Guarded, IsRetryable, Work
from guardrails.integrations.redis._releases import GRACE
from guardrails.integrations.redis._replies import leaves_connection_clean

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection
else:
    AbstractConnection = object

__all__ = ["GuardedAsyncConnection"]


class GuardedAsyncConnection(Guarded, AbstractConnection):
    """The asyncio flavour of `Guarded`."""

    _timer: TaskTimeout | None = None

    # --- opening -------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Opens a closed connection, within the caller's deadline."""
        if self.takes_checkout and self.checkout is None:
            self.checkout = current_checkout.get()
        if not self.is_connected:
            self._restore_read()
            self._connecting = True
            try:
                await self.plain.connect(self)
            finally:
                self._connecting = False

    async def _connect(self) -> None:
        await self.plain._connect(self)  # noqa: SLF001 - redis-py's own hook
        if self.takes_checkout and self.work.created is not None:
            self.work.created(self, self._writer)

    async def connect_check_health(
        self,
        check_health: bool = True,  # noqa: FBT001, FBT002 - redis-py's signature
        retry_socket_connect: bool = True,  # noqa: FBT001, FBT002
    ) -> None:
        """See the synchronous twin."""
        if self._busy or self._connecting or self.checkout is None or self.is_connected:
            if self.is_connected:
                await self.plain.connect_check_health(self, check_health, retry_socket_connect)
                return
            started = self.work.checkouts.figures.clock()
            await self.plain.connect_check_health(self, check_health, retry_socket_connect)
            self._note_opened(started)
            return
        self._connecting = True
        try:
            await self.call_with_retry(
                lambda: self.connect_check_health(check_health, retry_socket_connect=False),
                lambda error: self.disconnect(error=error),
            )
        finally:
            self._connecting = False

    async def disconnect(self, *args: Any, **kwargs: Any) -> None:
        """See redis-py."""
        self._note_closed(kwargs.get("error"))
        await self.plain.disconnect(self, *args, **kwargs)

    async def can_read(self, *args: Any) -> bool:  # fakeredis gives it a timeout
        """See the synchronous twin."""
        ready: bool = await self.plain.can_read(self, *args)
        if ready and not self._busy and current_checkout.get() is not None:
            raise redis.ConnectionError("Connection has data")
        return ready

    # --- working -------------------------------------------------------------------------------

    async def call_with_retry(
        self,
        do: Work,
        fail: CleanUp,
        is_retryable: IsRetryable = None,
        with_failure_count: bool = False,  # noqa: FBT001, FBT002 - redis-py's signature
    ) -> Any:
        """See the synchronous twin."""
        checkout = self.checkout
        if checkout is None or (checkout.subscriber and not self._connecting):
            return await self.policy.run(do, fail, is_retryable, with_failure_count)
        if self._busy:  # a connect or a ping inside a piece of work, which is retried as a whole
            outside, self._nested = self._nested, True
            try:
                return await self._try(do, fail, counts=with_failure_count, until=None)
            finally:
                self._nested = outside
        self.work.begin(checkout)
        self._busy = True
        self._timer = None if checkout.at is None else cancel_at(checkout.at, with_client=True)
        socket_timeout = self.socket_timeout
        if socket_timeout and self._timer is not None and (checkout.seconds or 0.0) <= socket_timeout:
            self.socket_timeout = None  # redis-py would make a task and a timer for each write and read
        try:
            result = await self._try(do, fail, counts=with_failure_count, until=checkout)
            stopped = self._disarm(None)
        except BaseException as error:
            await self._fail(checkout, error, stopped=self._disarm(error))
            raise
        finally:
            self._busy = False
            if self.socket_timeout is None:  # otherwise the server has asked for another timeout meanwhile
                self.socket_timeout = socket_timeout
        if stopped:  # the timer has fired, and other code has swallowed the cancellation
            await self._fail(checkout, asyncio.CancelledError(), stopped=True)
        only_opened = self._connecting and current_checkout.get() is checkout
        if not only_opened and self.work.succeed(checkout, result):
            await self._abort()
        return result

    async def _fail(self, checkout: RedisCheckout, error: BaseException, *, stopped: bool) -> None:
        if not leaves_connection_clean(error) or self.work.classifier.must_close(error):
            await self._abort()
        self.work.fail(checkout, error, connecting=self._connecting, stopped=stopped)

    async def _try(
        self,
        do: Work,
        fail: CleanUp,
        *,
        counts: bool,
        until: RedisCheckout | None,
    ) -> Any:
        failures = 0
        while True:
            try:
                return await do()
            except self.policy.errors as error:
                failures += 1
                plain = not self.work.enforces
                delay = None if until is None else self.policy.delay(failures, until.at, as_asked=plain)
                try:
                    await (fail(error, failures) if counts else fail(error))
                except redis.WatchError as unwatched:  # the transaction asks for a retry
                    if self._may_retry_transaction():
                        raise unwatched from error
                if delay is None:
                    raise
            await asyncio.sleep(delay)

    async def send_command(self, *args: Any, **kwargs: Any) -> None:
        """See redis-py."""
        if not self._busy or args[0] in INSPECTED:
            if self._is_unwatch(args):
                await self._unwatch()
                return
            self._inspect(args)
        await self.plain.send_command(self, *args, **kwargs)

    async def _unwatch(self) -> None:
        """See the synchronous twin."""
        until = asyncio.get_running_loop().time() + GRACE
        await self._within(until, lambda: self.plain.send_command(self, "UNWATCH", check_health=False))
        self._read_next_with(lambda read: self._within(until, read))

    async def _within(self, until: float, work: Callable[[], Awaitable[Any]]) -> Any:
        try:
            async with asyncio.timeout_at(until):
                return await work()
        except (TimeoutError, redis.TimeoutError) as error:
            await self._abort()
            raise redis.ConnectionError("UNWATCH was not answered in time") from error

    def _start_blocking(self, checkout: RedisCheckout) -> None:
        if not self.work.enforces:
            return
        self.socket_timeout = None
        self._reschedule(checkout)

    def _continue_without_client(self) -> None:
        if self._timer is not None:
            self._timer.request = None

    def _reschedule(self, checkout: RedisCheckout) -> None:
        if self._timer is not None:
            timers().disarm(self._timer)
            if checkout.at is not None:
                timers().arm(self._timer, checkout.at - monotonic())

    def _disarm(self, error: BaseException | None) -> bool:
        alarm, self._timer = self._timer, None
        if alarm is None or not alarm.disarm(error):
            return False
        if alarm.abandoned and self.checkout is not None:
            self.checkout.own = False  # no evidence
        return True

    async def _abort(self) -> None:
        """Closes the connection without waiting for its buffer: the server may never read it."""
        if isinstance(self._writer, asyncio.StreamWriter):
            self._writer.transport.abort()
        await self.disconnect(nowait=True)
