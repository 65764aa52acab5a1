"""A TCP proxy that causes the faults of a network. Depends on sockets; must not interpret the bytes."""

from __future__ import annotations

from typing import Literal, Self

from guardrails._util.checks import Faults
from guardrails.testing._relay import Relay
from guardrails.testing._wire import Side

__all__ = ["FaultProxy"]

_BOTH: tuple[Side, ...] = ("client", "server")


class FaultProxy:
    """A TCP proxy in front of a server, in one background thread; a context manager that closes it.

    `delay`, `hang`, `slice`, `hang_after`, `cut_after` and `refuse` last, for the connections that are
    open and for new ones, until `heal`; `reset` and `half_close` happen once, to those that are open.
    Every method may be called from any thread and returns when the fault is in force.

    ::

        with FaultProxy(server.port) as proxy:
            engine = create_engine(f"postgresql+psycopg://{proxy.host}:{proxy.port}/shop")
            proxy.hang()

    Args:
        port: The server's port.
        host: The server's host.

    Raises:
        ConfigurationError: ``port`` is not from 1 to 65535.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        faults = Faults("FaultProxy")
        faults.count("port", port, most=65535)
        faults.raise_if_any()
        self._relay = Relay((host, port))
        self._wire = self._relay.wire

    def __repr__(self) -> str:
        return f"<FaultProxy {self.host}:{self.port} {self.connections} open>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def host(self) -> str:
        """The loopback address on which it listens."""
        return self._relay.address[0]

    @property
    def port(self) -> int:
        """The port on which it listens, the same after `refuse` and `heal`."""
        return self._relay.address[1]

    # --- faults --------------------------------------------------------------------------------

    def delay(self, seconds: float, towards: Literal["client", "server", "both"] = "both") -> None:
        """Delays every chunk by ``seconds``.

        Raises:
            ConfigurationError: ``seconds`` is no duration, or ``towards`` no side.
        """
        sides = _sides("delay", towards, seconds=seconds)
        self._relay.do(lambda: self._wire.delay.update(dict.fromkeys(sides, seconds)))

    def hang(self, towards: Literal["client", "server", "both"] = "both") -> None:
        """Holds all bytes until `heal`; neither side is notified.

        Raises:
            ConfigurationError: ``towards`` is no side.
        """
        sides = _sides("hang", towards)
        self._relay.do(lambda: self._wire.hung.update(sides))

    def slice(self, size: int, *, every: float = 0.01) -> None:
        """Gives the client at most ``size`` bytes at once, ``every`` seconds apart.

        Raises:
            ConfigurationError: ``size`` is no count above 0, or ``every`` no duration.
        """
        faults = Faults("FaultProxy.slice")
        faults.count("size", size)
        faults.seconds("every", every, zero=True)
        faults.raise_if_any()

        def slice_() -> None:
            self._wire.slice_size, self._wire.slice_every = size, every

        self._relay.do(slice_)

    def cut_after(self, count: int) -> None:
        """Resets the connection that carries the last of ``count`` more bytes towards clients; once.

        Raises:
            ConfigurationError: ``count`` is no count; with 0 the cut is in place of the next byte.
        """
        faults = Faults("FaultProxy.cut_after")
        faults.count("count", count, least=0)
        faults.raise_if_any()

        def cut_after() -> None:
            self._wire.cut_after = count

        self._relay.do(cut_after)

    def hang_after(self, count: int) -> None:
        """Holds all bytes towards clients after ``count`` more of them, until `heal`.

        Raises:
            ConfigurationError: ``count`` is no count above 0.
        """
        faults = Faults("FaultProxy.hang_after")
        faults.count("count", count)
        faults.raise_if_any()

        def hang_after() -> None:
            self._wire.hang_after = count

        self._relay.do(hang_after)

    def reset(self) -> None:
        """Resets (RST) every open connection, on both sides."""
        self._relay.do(self._relay.reset)

    def half_close(self) -> None:
        """Ends the stream towards every client (FIN); clients can still send."""
        self._relay.do(self._relay.half_close)

    def refuse(self) -> None:
        """Stops listening: new connections are refused, open ones live."""
        self._relay.do(self._relay.stop_listening)

    def heal(self) -> None:
        """Ends all faults: it listens, held bytes arrive, nothing is delayed.

        Raises:
            OSError: After `refuse`: another process took the port meanwhile.
        """

        def heal() -> None:
            self._wire.heal()
            self._relay.listen()

        self._relay.do(heal)

    def close(self) -> None:
        """Closes every connection and ends the thread; may be called again."""
        self._relay.close()

    # --- what has passed -----------------------------------------------------------------------

    @property
    def connections(self) -> int:
        """Connections open now."""
        return len(self._relay.pairs)

    @property
    def accepted(self) -> int:
        """Connections ever accepted."""
        return self._relay.accepted

    @property
    def sent_to_server(self) -> int:
        """Bytes sent to the server."""
        return self._wire.sent["server"]

    @property
    def sent_to_client(self) -> int:
        """Bytes sent to clients; a fast client may get them a moment before they are counted."""
        return self._wire.sent["client"]

    @property
    def turns(self) -> int:
        """Changes of a connection's direction to client -> server: round trips on the wire."""
        return self._wire.turns


def _sides(what: str, towards: str, *, seconds: float = 0.0) -> tuple[Side, ...]:
    faults = Faults(f"FaultProxy.{what}")
    faults.choice("towards", towards, ("client", "server", "both"))
    faults.seconds("seconds", seconds, zero=True)
    faults.raise_if_any()
    return tuple(side for side in _BOTH if towards in {side, "both"})
