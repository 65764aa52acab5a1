"""Bounds and records the work on the connections of a cluster client's nodes, in threads.

Depends on guarded connections; must not import pools. `_async_node` is the asyncio twin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import redis

from guardrails._core.outcome import Outcome
from guardrails.integrations.redis._cluster_call import current_call
from guardrails.integrations.redis._connection import GuardedConnection
from guardrails.integrations.redis._node_runner import NodeRunner
from guardrails.integrations.redis._replies import errors_in, leaves_connection_clean

__all__ = ["GuardedNodeConnection", "RefusedConnection"]

_PAUSE = 0.25
"""Seconds that redis-py sleeps after ``CLUSTERDOWN``."""


class GuardedNodeConnection(GuardedConnection):
    """A connection to a cluster node. A piece of work lasts from the first send to the last reply.

    Attributes:
        pending: Replies that have not been read.
    """

    work: NodeRunner
    pending = 0
    _packed = 1
    _under_way = False
    _errors: tuple[Exception, ...] = ()

    def connect(self) -> None:
        """Opens a closed connection. The time until its first command is no work on the node."""
        GuardedConnection.connect(self)
        checkout = self.checkout
        if checkout is not None and checkout.tickets and not self._busy and not self._under_way:
            checkout.end(Outcome.NEUTRAL)

    @property
    def is_working(self) -> bool:
        """See GuardedConnection."""
        return self._busy or self._under_way

    def settle(self) -> None:
        """Ends the work on a connection that goes back to its pool."""
        if self._under_way:
            self._under_way = False
            self._close_limit()
            self.disconnect()  # a reply may be unread

    # --- sending -------------------------------------------------------------------------------

    def pack_commands(self, commands: Iterable[Any]) -> Any:
        """Inspects the commands of a pipeline; see redis-py."""
        commands = list(commands)
        if not self._is_work():
            return GuardedConnection.pack_commands(self, commands)
        self._begin()
        self._packed = len(commands)
        self._busy = True
        try:
            return GuardedConnection.pack_commands(self, commands)
        finally:
            self._busy = False

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:  # noqa: FBT001, FBT002
        """Sends the commands of a pipeline; see redis-py."""
        if not self._is_work():
            self.plain.send_packed_command(self, command, check_health)
            return
        count, self._packed = self._packed, 1
        self._send(count, self.plain.send_packed_command, command, check_health)

    def send_command(self, *args: Any, **kwargs: Any) -> None:
        """Sends one command; see redis-py."""
        if not self._is_work():
            GuardedConnection.send_command(self, *args, **kwargs)
        elif args[0] == "UNWATCH" and self._is_unwatch(args):
            self._unwatch()
        else:
            self._send(1, GuardedConnection.send_command, *args, **kwargs)

    def _is_work(self) -> bool:
        """True for a command that no piece of work of redis-py's ``call_with_retry`` contains."""
        checkout = self.checkout
        return not (self._busy or self._connecting or checkout is None or checkout.subscriber)

    def _begin(self) -> None:
        if not self._under_way and self.checkout is not None:
            self.work.admit(self.checkout)
            self._under_way, self.pending, self._errors = True, 0, ()
            self._limit.at = self.checkout.at

    def _send(self, count: int, send: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        self._begin()
        self._busy = True
        try:
            send(self, *args, **kwargs)
        except BaseException as error:
            self._end_failed(error)
            raise
        finally:
            self._busy = False
        self.pending += count

    # --- reading -------------------------------------------------------------------------------

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Reads one reply; see redis-py."""
        checkout = self.checkout
        if not self._under_way or self._busy or checkout is None:
            return self.plain.read_response(self, *args, **kwargs)
        self.work.start(checkout)
        try:
            reply = self.plain.read_response(self, *args, **kwargs)
        except BaseException as error:
            if isinstance(error, Exception) and leaves_connection_clean(error):
                self._errors += (error,)
                self._end_reply()
                self._check_pause(error)
            else:
                self._end_failed(error)
            raise
        if type(reply) is list:
            self._errors += tuple(errors_in(reply))
        self._end_reply()
        return reply

    def _end_reply(self) -> None:
        self.pending -= 1
        checkout = self.checkout
        if self.pending > 0 or checkout is None:
            return
        self._under_way = False
        self._close_limit()
        if self.work.succeed(checkout, list(self._errors) or None):
            self.disconnect()

    def _end_failed(self, error: BaseException) -> None:
        """Ends work without all of its replies.

        Raises:
            CallTimeoutError: Its deadline ended it.
        """
        self._under_way = False
        checkout = self.checkout
        try:
            if checkout is not None:
                self.work.start(checkout)
                self._fail(checkout, error)
        finally:
            self._close_limit()

    def _close_limit(self) -> None:
        self._limit.at, self._limit.blocking = None, False

    def _check_pause(self, error: Exception) -> None:
        """Raises instead of an error after which redis-py would sleep beyond the deadline of the call."""
        call = current_call.get()
        if call is not None and type(error) is redis.exceptions.ClusterDownError and call.is_over(_PAUSE):
            raise call.timeout_error() from error


class RefusedConnection:
    """Stands for a connection that a redirected command did not get; raises the reason when it is used.

    redis-py closes and returns the connection before the redirection once more when it gets no other one.
    By then another thread may use that connection, and would get a foreign reply.

    Args:
        error: The reason.
        host: The host of the node.
        port: The port of the node.
    """

    is_connected = False
    db = 0

    def __init__(self, error: BaseException, host: object, port: object) -> None:
        self._error = error
        self.host, self.port = host, port

    def send_command(self, *_: Any, **__: Any) -> None:
        """Raises the reason."""
        raise self._error

    def disconnect(self, *_: Any, **__: Any) -> None:
        """See redis-py: there is nothing to close."""
