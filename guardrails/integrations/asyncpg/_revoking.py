"""Takes asyncpg's connections back that are held idle for longer than ``max_idle_hold``.

Depends on asyncpg's connections; must not import the pool's hooks. asyncpg frees a holder when its
connection is closed. Only what the holder's code still has must fail in the right way: the proxy of the
connection, and transactions, cursors and prepared statements, which have the connection itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping
from contextlib import suppress
from typing import Any, NoReturn

from guardrails._dbapi.runner_on_loop import LoopRunner
from guardrails._pool.checkout import Checkout
from guardrails._pool.frames import lines
from guardrails._pool.holder_registry import HolderRegistry
from guardrails._pool.idle_hold import IdleHold
from guardrails._pool.idle_hold_limit import IdleHoldLimit
from guardrails._runtime.holding import holding, on_enter
from guardrails.errors import ConnectionRevokedError
from guardrails.integrations.asyncpg._protocol import state_of

__all__ = ["Revocation"]

_Error = Callable[[], ConnectionRevokedError]
_Out = tuple[Any, Checkout]
"""A holder and its checkout."""


class Revocation:
    """The limit for the idle holds of one pool's connections.

    Args:
        registry: The holders of the connections.
        out: The checkouts by asyncpg's holders.
        seconds: The limit.
        runner: Shuts the sockets of connections.
        pool: The pool.
    """

    def __init__(
        self,
        registry: HolderRegistry,
        out: MutableMapping[Any, Checkout],
        seconds: float,
        runner: LoopRunner,
        pool: Any,
    ) -> None:
        self._registry = registry
        self._out = out
        self._runner = runner
        self._pool = pool
        self._limit: IdleHoldLimit[_Out] = IdleHoldLimit(
            registry.guard, seconds, self._holds, self._due, lambda out: (lines(out[1].site), out[1].request)
        )
        on_enter(self)

    def begin(self, checkout: Checkout) -> None:
        """Gives a new checkout its hold; its caller has the connection."""
        now = self._limit.now()
        checkout.hold = IdleHold(now)
        checkout.hold.hand_out(now)
        if not self._limit.watching:
            self._limit.watch()

    def is_revoked(self, proxy: Any) -> bool:
        """True if a connection that its user returns was taken back."""
        return "guardrails_revoked" in vars(type(getattr(proxy, "_con", None)))

    def cover(self, block: holding) -> None:
        """See `on_enter`."""
        caller = self._registry.caller()
        for hold, (_, checkout) in self._holds():
            if checkout.caller == caller:
                hold.cover(block)

    def _holds(self) -> Iterable[tuple[IdleHold, _Out]]:
        out = list(self._out.items())
        return [(checkout.hold, (holder, checkout)) for holder, checkout in out if checkout.hold is not None]

    def _due(self, out: _Out) -> None:
        """Takes a connection back on its event loop. Called by the housekeeper's thread."""
        with suppress(RuntimeError):  # the loop is closed: no code of it runs any more
            self._pool._loop.call_soon_threadsafe(self._take_back, *out)  # noqa: SLF001 - no public way

    def _take_back(self, holder: Any, checkout: Checkout) -> None:
        hold, connection = checkout.hold, holder._con  # noqa: SLF001 - likewise, as all below
        if hold is None or self._out.get(holder) is not checkout or connection is None:
            return
        now, where, route = self._limit.now(), lines(checkout.site), checkout.route
        seconds, proxy = hold.idle_for(now), holder._proxy  # noqa: SLF001
        arguments = (self._registry.guard.name, seconds, where, route)

        def error() -> ConnectionRevokedError:
            return ConnectionRevokedError(*arguments)

        def is_free() -> bool:
            # A connection that listens is held on purpose.
            return not connection._listeners and not connection._log_listeners  # noqa: SLF001

        if hold.take_back(now, self._limit.seconds, error, is_free):
            checkout.reported = False
            check_later = self._identify(connection, seconds)
            self._registry.figures.invalidated()
            _end(connection)
            _refuse_work(connection, error)
            if proxy is not None:
                proxy._con = connection  # noqa: SLF001
            check_later()
            self._limit.log(where, route, seconds)

    def _identify(self, connection: Any, idle: float) -> Callable[[], object]:
        """Returns what checks later that the server has ended the session of a connection."""
        sessions, state = self._registry.revoked_sessions, state_of(connection)
        if sessions is not None and state is not None:
            with suppress(Exception):  # it is broken
                return sessions.identify(connection, idle, *state.ages)
        return bool


class _RevokedProtocol:
    """Replaces the protocol of a connection that was taken back: all work on it fails."""

    def __init__(self, error: _Error) -> None:
        self._error = error

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise self._error()


def _nothing(_: Any) -> None:
    pass


def _end(connection: Any) -> None:
    """Closes a connection, whose holder goes back to the pool; its statements stay as they are."""
    plain = type(connection)
    own = {"__slots__": (), "__module__": plain.__module__, "_mark_stmts_as_closed": _nothing}
    connection.__class__ = type(plain.__name__, (plain,), own)
    connection.terminate()
    connection.__class__ = plain


def _refuse_work(connection: Any, error: _Error) -> None:
    """Has all further work on a closed connection raise an error; a rollback and a close are quiet."""
    plain = type(connection)

    def is_closed(self: Any) -> bool:  # noqa: ARG001 - a transaction must be able to end
        return False

    def check_open(self: Any) -> NoReturn:  # noqa: ARG001
        raise error()

    async def execute(self: Any, query: Any, *args: Any, timeout: Any = None) -> str:  # noqa: ARG001, ASYNC109
        if isinstance(query, str) and query.startswith("ROLLBACK"):
            return "ROLLBACK"
        raise error()

    async def close(self: Any, *, timeout: Any = None) -> None:  # noqa: ASYNC109
        pass

    connection.__class__ = type(
        plain.__name__,
        (plain,),
        {
            "__slots__": (),
            "__module__": plain.__module__,
            "__del__": _nothing,
            "guardrails_revoked": True,
            "_protocol": _RevokedProtocol(error),
            "_check_open": check_open,
            "is_closed": is_closed,
            "execute": execute,
            "close": close,
            "terminate": _nothing,
        },
    )
