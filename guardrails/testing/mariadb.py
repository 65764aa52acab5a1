"""A private MariaDB on a free loopback port, from the binaries of this machine, because no wheel has them.

Depends on `guardrails.testing.servers`; must not import guards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guardrails.testing._ground import find_ground, program
from guardrails.testing.servers import Server, ServerError

if TYPE_CHECKING:
    pass

__all__ = ["MariaDBServer"]

_DATABASE = "guardrails"
_SMALL = (
    "--innodb-buffer-pool-size=32M",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-log-file-size=8M",
    "--aria-pagecache-buffer-size=8M",
    "--performance-schema=off",
    "--loose-debug-no-sync",
    # Without this it would look up the name of every client, and an unreachable resolver takes seconds.
    "--skip-name-resolve",
)


class MariaDBServer(Server):
    """A private MariaDB: user ``root`` without a password, database ``guardrails``, durability off."""

    _kind = "MariaDB"

    @staticmethod
    def installed() -> bool:
        """True if this machine has the programs."""
        return program("mariadbd") is not None and program("mariadb-install-db") is not None

    @classmethod
    def start(cls, *options: str) -> MariaDBServer:
        """Creates a data directory in a temporary one and starts a server; takes one to three seconds.

        Args:
            options: More command-line options, such as ``"--max-connections=10"``.

        Raises:
            ServerError: MariaDB is not installed, or did not start; in the second case the message ends with
                the last lines of its log.
        """
        found = program("mariadbd")
        if found is None or not cls.installed():
            raise ServerError("mariadbd is not installed; Debian has it in the package mariadb-server")
        ground = find_ground("mariadb", found.parent, [found.name], copies=False)
        if ground is None:
            raise ServerError("no unprivileged user can run MariaDB from a temporary directory")
        server = cls(ground, options)
        server._start()
        return server

    def url(self, driver: str = "pymysql", database: str = _DATABASE) -> str:
        """A SQLAlchemy URL, such as ``mysql+aiomysql://...``."""
        return f"mysql+{driver}://root@127.0.0.1:{self.port}/{database}"

    def _prepare(self) -> None:
        words = ["--no-defaults", *self._places(), "--skip-test-db", "--skip-name-resolve"]
        # "normal" gives root an empty password; the default requires a Unix socket and its owner.
        words += [
            "--auth-root-authentication-method=normal",
            "--loose-debug-no-sync",
            "--innodb-log-file-size=8M",
        ]
        self._run(str(program("mariadb-install-db")), *words)
        (self.home / "init.sql").write_text(f"CREATE DATABASE IF NOT EXISTS {_DATABASE};\n")
        (self.home / "init.sql").chmod(0o644)

    def _places(self) -> list[str]:
        # In a common directory two servers that start at once would remove each other's temporary tables.
        return [f"--datadir={self.home / 'data'}", f"--tmpdir={self.home}"]

    def _command(self) -> list[str]:
        home = self.home
        files = [*self._places(), f"--socket={home / 'socket'}", f"--pid-file={home / 'pid'}"]
        address = ["--bind-address=127.0.0.1", f"--port={self.port}", f"--init-file={home / 'init.sql'}"]
        mariadbd = str(self._ground.binaries / "mariadbd")
        return [mariadbd, "--no-defaults", *files, *address, *_SMALL, *self._options]

    def _is_ready(self) -> bool:
        return b"ready for connections" in self._log.read_bytes()
