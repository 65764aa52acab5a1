"""A private pgbouncer in front of a private PostgreSQL, from the binary of this machine.

Depends on `guardrails.testing.servers`; must not import guards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guardrails.testing._ground import Ground, find_ground, program
from guardrails.testing.servers import PostgresServer, Server, ServerError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PgBouncer"]


class PgBouncer(Server):
    """A private pgbouncer: transaction pooling over five connections, user and database ``postgres``."""

    _kind = "pgbouncer"

    def __init__(self, ground: Ground, postgres: PostgresServer, settings: Mapping[str, str]) -> None:
        super().__init__(ground)
        self._postgres = postgres
        self._settings = settings

    @staticmethod
    def installed() -> bool:
        """True if this machine has the program."""
        return program("pgbouncer") is not None

    @classmethod
    def start(cls, postgres: PostgresServer, *, settings: Mapping[str, str] | None = None) -> PgBouncer:
        """Starts a pgbouncer; takes about 50 ms.

        Args:
            postgres: The server behind it.
            settings: More settings, as in pgbouncer.ini, such as ``{"pool_mode": "session"}``.

        Raises:
            ServerError: pgbouncer is not installed, or did not start; in the second case the message ends
                with the last lines of its log.
        """
        found = program("pgbouncer")
        if found is None:
            raise ServerError("pgbouncer is not installed; Debian has it in the package pgbouncer")
        ground = find_ground("pgbouncer", found.parent, [found.name], copies=False)
        if ground is None:
            raise ServerError("no unprivileged user can run pgbouncer from a temporary directory")
        server = cls(ground, postgres, settings or {})
        server._start()
        return server

    def url(self, driver: str = "psycopg", database: str = "postgres") -> str:
        """A SQLAlchemy URL, such as ``postgresql+asyncpg://...``; ``driver=""`` gives a libpq one."""
        scheme = f"postgresql+{driver}" if driver else "postgresql"
        return f"{scheme}://postgres@127.0.0.1:{self.port}/{database}"

    def _command(self) -> list[str]:
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            # Every client is accepted, as the user of the [databases] line.
            "auth_type": "any",
            "pool_mode": "transaction",
            "default_pool_size": "5",
            **self._settings,
        }
        behind = f"* = host=127.0.0.1 port={self._postgres.port} user=postgres"
        own = [f"{name} = {value}" for name, value in settings.items()]
        file = self.home / "pgbouncer.ini"
        file.write_text("\n".join(["[databases]", behind, "[pgbouncer]", *own, ""]))
        file.chmod(0o644)
        return [str(self._ground.binaries / "pgbouncer"), str(file)]

    def _is_ready(self) -> bool:
        return b"process up" in self._log.read_bytes()
