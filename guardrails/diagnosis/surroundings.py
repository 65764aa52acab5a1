"""What a service runs in. Depends on nothing that must be installed; must not connect to a server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from guardrails._pool.sizing import RESERVED
from guardrails._util.checks import Faults

__all__ = ["Surroundings"]


@dataclass(frozen=True)
class Surroundings:
    """The surroundings of a service, which its code does not contain.

    Attributes:
        workers: Processes.
        threads: Threads of one process that run synchronous endpoints.
        worker_timeout: Seconds after which a supervisor kills a worker that does not answer; None: never.
        max_connections: The database server's limit; None: not checked.
        reserved: Of these, the connections that applications cannot get.
        idle_timeout: Seconds after which the server closes an idle connection; None: never, or not known.
        address: The server's URL, as SQLAlchemy has it; None if there is none.
        role: The limit of the service's role on that server, a `RoleLimit`; None if not known.
        reported: Returns the connections that the workers of a fleet's budget report; None if not known.

    Raises:
        ConfigurationError: One or more are out of range.
    """

    workers: int = 1
    threads: int = 40
    worker_timeout: float | None = None
    max_connections: int | None = None
    reserved: int = RESERVED
    idle_timeout: float | None = None
    address: Any = None
    role: Any = None
    reported: Callable[[Any, str], int | None] = lambda *_: None

    def __post_init__(self) -> None:
        faults = Faults("doctor")
        faults.count("workers", self.workers)
        faults.count("threads", self.threads)
        faults.seconds("worker_timeout", self.worker_timeout, none=True)
        faults.count("max_connections", self.max_connections, none=True)
        faults.raise_if_any()
