"""A private MySQL, in the place of MariaDB: no distribution that the tests run on has it.

``GUARDRAILS_MYSQLD`` names the program; ``.ci/mysql`` gets it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from guardrails.testing._ground import find_ground
from guardrails.testing.mariadb import MariaDBServer
from guardrails.testing.servers import ServerError

VARIABLE = "GUARDRAILS_MYSQLD"

SMALL = (
    "--secure-file-priv=NULL",
    "--innodb-redo-log-capacity=8M",
    "--innodb-buffer-pool-size=32M",
    "--innodb-flush-log-at-trx-commit=2",  # with 0 a killed server would forget its newest users
    "--skip-log-bin",
    "--skip-name-resolve",
    "--mysqlx=OFF",
    "--cte-max-recursion-depth=100000000",  # for numbers; it has no sequences
)

PREPARED = (
    "CREATE DATABASE IF NOT EXISTS guardrails;\n"
    "CREATE USER IF NOT EXISTS root@'127.0.0.1';\n"
    "GRANT ALL ON *.* TO root@'127.0.0.1' WITH GRANT OPTION;\n"
)


class MySQLServer(MariaDBServer):
    """See MariaDBServer."""

    _kind = "MySQL"

    @staticmethod
    def installed():
        return VARIABLE in os.environ

    @classmethod
    def start(cls, *options):
        found = Path(os.environ[VARIABLE])
        ground = find_ground("mysql", found.parent, [found.name], copies=False)
        if ground is None:
            raise ServerError("no unprivileged user can run MySQL from a temporary directory")
        server = cls(ground, options)
        server._start()
        return server

    def _prepare(self):
        program = Path(os.environ[VARIABLE]).name
        self._run(program, "--no-defaults", "--initialize-insecure", *self._places(), *SMALL)
        (self.home / "init.sql").write_text(PREPARED)
        (self.home / "init.sql").chmod(0o644)

    def _command(self):
        home = self.home
        files = [*self._places(), f"--socket={home / 'socket'}", f"--pid-file={home / 'pid'}"]
        address = ["--bind-address=127.0.0.1", f"--port={self.port}", f"--init-file={home / 'init.sql'}"]
        return [os.environ[VARIABLE], "--no-defaults", *files, *address, *SMALL, *self._options]


def start_mariadb(*options):
    """Starts MariaDB, or MySQL if the environment names it; a visible skip if there is neither."""
    kind = MySQLServer if MySQLServer.installed() else MariaDBServer
    if not kind.installed():
        pytest.skip("mariadbd is not installed")
    return kind.start(*options)


def skip_on_mysql(server, why):
    """Skips a test visibly on MySQL, with what MySQL does otherwise than MariaDB."""
    if isinstance(server, MySQLServer):
        pytest.skip(f"MySQL {why}")
