"""Bounds and records the work on the nodes of an asyncio cluster client.

Depends on guarded connections and redis-py's nodes; must not know the topology. A node is its own pool. A
command or a pipeline is one call of the node, which is one piece of work. Transactions and subscribers take
connections of the node by hand; `_node_connection` is the synchronous twin of these.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Any

from redis.asyncio.cluster import PipelineCommand

from guardrails._runtime.task_timeout import TaskTimeout, cancel_at
from guardrails.errors import RejectedError
from guardrails.integrations.redis._async_connection import GuardedAsyncConnection
from guardrails.integrations.redis._blocking import NO_EVIDENCE, block_time, total_block_time
from guardrails.integrations.redis._checkout import RedisCheckout
from guardrails.integrations.redis._cluster_call import current_call
from guardrails.integrations.redis._guarded_connection import is_guarded
from guardrails.integrations.redis._node_runner import NodeRunner
from guardrails.integrations.redis._releases import is_release
from guardrails.integrations.redis._replies import errors_in, leaves_connection_clean

__all__ = ["GuardedAsyncNodeConnection", "GuardedNode"]

_given: ContextVar[RedisCheckout | None] = ContextVar("guardrails_redis_node_checkout", default=None)
"""The checkout of the command or pipeline that takes a connection of its node now."""


class GuardedAsyncNodeConnection(GuardedAsyncConnection):
    """A connection to a cluster node, for the transactions that take one by hand.

    Attributes:
        pending: Replies of a transaction that have not been read.
        node: The node that it belongs to.
    """

    work: NodeRunner
    node: Any = None
    pending = 0
    by_hand = False
    _packed = 1
    _under_way = False
    _errors: tuple[Exception, ...] = ()

    def settle(self) -> None:
        """Ends the work on a connection that goes back to its node."""
        if self._under_way:
            self._under_way = False
            self.mark_for_reconnect()  # type: ignore[no-untyped-call]  # a reply may be unread

    def pack_commands(self, commands: Iterable[Any]) -> Any:
        """Inspects the commands of a pipeline or a transaction; see redis-py."""
        commands = list(commands)
        if self._is_work():
            self._begin()
            self._packed = len(commands)
        return GuardedAsyncConnection.pack_commands(self, commands)

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:  # noqa: FBT001, FBT002
        """See redis-py."""
        if not self._is_work():
            await self.plain.send_packed_command(self, command, check_health)
            return
        count, self._packed = self._packed, 1
        self._begin()
        await self._bounded(lambda: self.plain.send_packed_command(self, command, check_health))
        self.pending += count

    async def send_command(self, *args: Any, **kwargs: Any) -> None:
        """See redis-py."""
        if not self._is_work():
            await GuardedAsyncConnection.send_command(self, *args, **kwargs)
        elif self._is_unwatch(args):
            await self._unwatch()
        else:
            self._begin()
            await self._bounded(lambda: GuardedAsyncConnection.send_command(self, *args, **kwargs))
            self.pending += 1

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """See redis-py."""
        if not self._under_way or self._busy:
            return await self.plain.read_response(self, *args, **kwargs)
        try:
            reply = await self._bounded(lambda: self.plain.read_response(self, *args, **kwargs))
        except Exception as error:
            if self._under_way:  # an error reply
                self._errors += (error,)
                await self._end_reply()
            raise
        if type(reply) is list:
            self._errors += tuple(errors_in(reply))
        await self._end_reply()
        return reply

    def _is_work(self) -> bool:
        checkout = self.checkout
        return not (self._busy or self._connecting or checkout is None or checkout.subscriber)

    def _begin(self) -> None:
        if not self._under_way and self.checkout is not None:
            self.work.admit(self.checkout)
            self.work.start(self.checkout)
            self._under_way, self.pending, self._errors = True, 0, ()

    async def _bounded(self, do: Callable[[], Awaitable[Any]]) -> Any:
        """Does one step of a piece of work until its deadline."""
        checkout = self.checkout
        if checkout is None:
            return await do()
        self._busy = True
        self._timer = None if checkout.at is None else cancel_at(checkout.at)
        try:
            result = await do()
            stopped = self._disarm(None)
        except BaseException as error:
            stopped = self._disarm(error)
            if stopped or not leaves_connection_clean(error):
                self._under_way = False
                await self._fail(checkout, error, stopped=stopped)
            raise
        finally:
            self._busy = False
        if stopped:
            self._under_way = False
            await self._fail(checkout, asyncio.CancelledError(), stopped=True)
        return result

    async def _end_reply(self) -> None:
        self.pending -= 1
        checkout = self.checkout
        if self.pending > 0 or checkout is None:
            return
        self._under_way = False
        if self.work.succeed(checkout, list(self._errors) or None):
            await self._abort()


class GuardedNode:
    """The methods of a guarded node. It is not a base class: its members are copied, as those of `Guarded`.

    Attributes:
        plain: The node's class before the guard.
        hooks: Knows what runs the work of each node, by ``runner(name)``, and the ``topology``.
    """

    __slots__ = ()

    plain: Any
    hooks: Any
    name: str

    def acquire_connection(self) -> Any:
        """See redis-py; takes a slot, unless the command that asks has one."""
        work: NodeRunner = self.hooks.runner(self.name)
        given = _given.get()
        checkout = work.enter_now() if given is None else given
        try:
            connection = self.plain.acquire_connection(self)
        except BaseException as error:
            if given is None:
                checkout.release_slots()
            work.not_handed_out(error)
            raise
        self.hooks.take_over(connection, work)
        connection.node = self
        connection.checkout, connection.by_hand = checkout, given is None
        connection._busy = given is not None  # noqa: SLF001 - the node bounds and records the work
        if given is None and not connection.is_connected:
            checkout.proves = False  # opening proves nothing
        work.hand_out(connection, checkout)
        return connection

    def release(self, connection: Any) -> None:
        """See redis-py; releases a slot that was taken with the connection."""
        if not is_guarded(connection):  # it was taken before the guard
            self.plain.release(self, connection)
            return
        checkout = connection.checkout
        if checkout is None:
            return  # redis-py gives some connections back twice
        connection.checkout, connection._busy = None, False  # noqa: SLF001
        connection.settle()
        try:
            self.plain.release(connection.node, connection)  # a transaction's slot may have moved
        finally:
            if connection.by_hand:
                checkout.release_slots()
                connection.work.checkouts.remove(checkout)

    async def execute_command(self, *args: Any, asking: bool = False, **kwargs: Any) -> Any:
        """See redis-py; sends ``ASKING`` on the connection of the command that follows.

        redis-py takes a connection for each of the two.
        """
        call = current_call.get()
        if call is not None and args == ("ASKING",):
            call.asking = self.name
            return "OK"
        if call is None or call.asking != self.name or asking:
            if asking:  # redis-py 8.0 does not know it, and would give it to what reads the reply
                kwargs["asking"] = True
            return await self._run(lambda: self.plain.execute_command(self, *args, **kwargs), [args])
        call.asking = None
        commands = [PipelineCommand(0, "ASKING"), PipelineCommand(1, *args, **kwargs)]
        await self._run(lambda: self.plain.execute_pipeline(self, commands), [args], commands)
        for command in commands:
            if isinstance(command.result, Exception):
                raise command.result
        return commands[1].result

    async def execute_pipeline(self, commands: Any) -> Any:
        """See redis-py."""
        sent = [each.args for each in commands]
        return await self._run(lambda: self.plain.execute_pipeline(self, commands), sent, commands)

    async def _run(
        self, do: Callable[[], Awaitable[Any]], sent: Sequence[Any], commands: Sequence[Any] = ()
    ) -> Any:
        """Runs one piece of work in a slot.

        Args:
            do: Takes a connection, sends, and reads.
            sent: The arguments of its commands.
            commands: Those of a pipeline, in which redis-py leaves their results.
        """
        work: NodeRunner = self.hooks.runner(self.name)
        try:
            checkout = await work.enter_async()
        except RejectedError as refusal:
            self.hooks.topology.suspect()
            if not is_release(sent):
                work.checkouts.refused(refusal)
                raise
            checkout = work.for_reserve()
        token = _given.set(checkout)
        try:
            return await _work(work, checkout, do, sent, commands)
        finally:
            _given.reset(token)
            checkout.release_slots()
            work.checkouts.remove(checkout)


async def _work(
    work: NodeRunner,
    checkout: RedisCheckout,
    do: Callable[[], Awaitable[Any]],
    sent: Sequence[Any],
    commands: Sequence[Any],
) -> Any:
    """Does one piece of work, with its deadline."""
    work.admit(checkout)
    work.start(checkout)
    checkout.proves = len(sent) > 1 or sent[0][0] not in NO_EVIDENCE
    seconds = block_time(sent[0]) if len(sent) == 1 else total_block_time(sent)
    if seconds is not None:
        work.note_blocking(checkout, seconds)
    else:
        work.extend_for_release(checkout, list(sent))
    timer: TaskTimeout | None = None if checkout.at is None else cancel_at(checkout.at)
    try:
        result = await do()
    except BaseException as error:
        stopped = timer is not None and timer.disarm(error)
        work.fail(checkout, error, stopped=stopped)
        raise
    if timer is not None and timer.disarm(None):  # other code has swallowed the cancellation
        work.fail(checkout, asyncio.CancelledError(), stopped=True)
    errors = [each.result for each in commands if isinstance(each.result, Exception)]
    work.succeed(checkout, errors or None)
    return result
