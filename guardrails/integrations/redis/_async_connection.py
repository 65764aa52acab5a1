"""Connections of a guarded asyncio client: each piece of work bounded and reported. Knows no pools.

One timer bounds a piece of work: at the deadline its task is cancelled, and redis-py closes what it
was reading. The shape is that of ``_connection``; the waits differ.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

import redis

from guardrails._runtime.loop_timers import timers
from guardrails._runtime.task_timeout import TaskTimeout, cancel_at
from guardrails.integrations.redis._checkout import RedisCheckout, under_way
from guardrails.integrations.redis._guarded_connection import LOOKED_AT, Guarded
from guardrails.integrations.redis._releases import GRACE
from guardrails.integrations.redis._replies import leaves_clean

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection
else:
    AbstractConnection = object

__all__ = ["GuardedAsyncConnection"]


class GuardedAsyncConnection(Guarded, AbstractConnection):
    """See Guarded."""

    _alarm: TaskTimeout | None = None

    # --- opening -------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Opens the connection if it is not open, within the time its caller has."""
        if self.meets_callers and self.checkout is None:
            self.checkout = under_way.get()
        if not self.is_connected:
            self._read_plainly()
            self._connecting = True
            try:
                await self.plain.connect(self)
            finally:
                self._connecting = False

    async def connect_check_health(
        self,
        check_health: bool = True,  # noqa: FBT001, FBT002 - redis-py's signature
        retry_socket_connect: bool = True,  # noqa: FBT001, FBT002
    ) -> None:
        """See the synchronous twin."""
        if self._busy or self._connecting or self.checkout is None or self.is_connected:
            await self.plain.connect_check_health(self, check_health, retry_socket_connect)
            return
        self._connecting = True
        try:
            await self.call_with_retry(
                lambda: self.plain.connect_check_health(self, check_health, retry_socket_connect=False),
                lambda error: self.disconnect(error=error),
            )
        finally:
            self._connecting = False

    async def can_read(self, *args: Any) -> bool:  # fakeredis gives it a timeout
        """See the synchronous twin."""
        ready: bool = await self.plain.can_read(self, *args)
        if ready and not self._busy and under_way.get() is not None:
            raise redis.ConnectionError("Connection has data")
        return ready

    # --- working -------------------------------------------------------------------------------

    async def call_with_retry(
        self,
        do: Callable[[], Awaitable[Any]],
        fail: Callable[..., Awaitable[Any]],
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
            return await self.policy.run(do, fail, is_retryable, with_failure_count)
        if self._busy:  # a connect or a ping inside a larger piece of work, which is tried again as a whole
            outside, self._nested = self._nested, True
            try:
                return await self._try(do, fail, counts=with_failure_count, until=None)
            finally:
                self._nested = outside
        self.work.begin(checkout)
        self._busy = True
        self._alarm = None if checkout.at is None else cancel_at(checkout.at)
        socket_timeout = self.socket_timeout
        if socket_timeout and checkout.seconds is not None and checkout.seconds <= socket_timeout:
            self.socket_timeout = None  # redis-py makes a task and a timer of it for each write and read
        try:
            result = await self._try(do, fail, counts=with_failure_count, until=checkout)
            stopped = self._disarm(None)
        except BaseException as error:
            await self._give_up(checkout, error, stopped=self._disarm(error))
            raise
        finally:
            self._busy = False
            if self.socket_timeout is None:  # else the server has asked for another meanwhile
                self.socket_timeout = socket_timeout
        if stopped:  # the timer rang, and something in between swallowed it
            await self._give_up(checkout, asyncio.CancelledError(), stopped=True)
        if not self._connecting or under_way.get() is not checkout:  # else it is the first half of something
            self.work.succeed(checkout, result)
        return result

    async def _give_up(self, checkout: RedisCheckout, error: BaseException, *, stopped: bool) -> None:
        if not leaves_clean(error):
            await self._abort()
        self.work.fail(checkout, error, connecting=self._connecting, stopped=stopped)

    async def _try(
        self,
        do: Callable[[], Awaitable[Any]],
        fail: Callable[..., Awaitable[Any]],
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
                pause = None if until is None else self.policy.pause(failures, until.at)
                try:
                    await (fail(error, failures) if counts else fail(error))
                except redis.WatchError as unwatched:  # a transaction asks to be tried again
                    if self._asks_again():
                        raise unwatched from error
                if pause is None:
                    raise
            await asyncio.sleep(pause)

    async def send_command(self, *args: Any, **kwargs: Any) -> None:
        """See redis-py."""
        if not self._busy or args[0] in LOOKED_AT:
            if self._unwatches(args):
                await self._unwatch()
                return
            self._look_at(args)
        await self.plain.send_command(self, *args, **kwargs)

    async def _unwatch(self) -> None:
        """See the synchronous twin."""
        until = asyncio.get_running_loop().time() + GRACE
        await self._in_time(until, lambda: self.plain.send_command(self, "UNWATCH", check_health=False))
        self._once_read(lambda read: self._in_time(until, read))

    async def _in_time(self, until: float, work: Callable[[], Awaitable[Any]]) -> Any:
        try:
            async with asyncio.timeout_at(until):
                return await work()
        except (TimeoutError, redis.TimeoutError) as error:
            await self._abort()
            raise redis.ConnectionError("UNWATCH was not answered in time") from error

    def _be_patient(self, checkout: RedisCheckout) -> None:
        self.socket_timeout = None
        self._reschedule(checkout)

    def _reschedule(self, checkout: RedisCheckout) -> None:
        if self._alarm is not None:
            timers().disarm(self._alarm)
            if checkout.at is not None:
                timers().arm(self._alarm, checkout.at - monotonic())

    def _disarm(self, error: BaseException | None) -> bool:
        alarm, self._alarm = self._alarm, None
        return alarm is not None and alarm.disarm(error)

    async def _abort(self) -> None:
        """Closes the connection without waiting for a server that may never take what was sent."""
        if isinstance(self._writer, asyncio.StreamWriter):
            self._writer.transport.abort()
        await self.disconnect(nowait=True)
