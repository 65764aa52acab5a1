"""Finds the binaries, a directory, an account that reaches both, and a port for a private server.

Depends on files and users; must not start a server, change a mode or add a user.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Ground", "find_ground", "free_port", "last_lines", "new_home", "package", "program"]

_HIGHEST_PORT = 55534  # Valkey reserves port + 10000 for its cluster bus
_NOBODY = 65534
_TAIL = 8
_SYSTEM = "/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin:/usr/libexec"
"""The directories of servers in distributions; the first is not on an ordinary user's PATH."""


@dataclass(frozen=True, slots=True)
class Ground:
    """The surroundings of one server.

    Attributes:
        home: A fresh temporary directory.
        binaries: The directory of the programs.
        account: Arguments for Popen by which the child is not root; empty for an ordinary user.
    """

    home: Path
    binaries: Path
    account: dict[str, Any] = field(default_factory=dict)

    @property
    def surroundings(self) -> dict[str, Any]:
        """Arguments for Popen: directory, environment and account of the child."""
        # The caller's environment is left out: its PGPORT or LC_ALL must not decide how a server starts.
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "HOME": str(self.home)}
        return {"cwd": self.home, "env": environment, "stdin": subprocess.DEVNULL, **self.account}


def free_port() -> int:
    """Returns a loopback TCP port below 55535 that was free a moment ago."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port <= _HIGHEST_PORT:
            return port


def package(module: str, wheel: str) -> Path:
    """Returns the directory of an installed package without importing it, because importing runs its code.

    Raises:
        ImportError: It is not installed; the message names the extra.
    """
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"private servers need {wheel}; install it with: pip install 'guardrails-db[demo]'")
    return Path(spec.submodule_search_locations[0])


def program(name: str) -> Path | None:
    """Returns a program on the PATH or in the usual directories of servers; None if missing."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM}")
    return None if found is None else Path(found)


def last_lines(log: Path) -> str:
    """Returns the end of a log, to follow an error message; empty without a log."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    words = [line.strip() for line in lines[-_TAIL:] if line.strip()]
    return f": {' | '.join(words)}" if words else ""


def new_home(kind: str, base: Path | None = None) -> Path:
    """Makes a directory with mode 0700, in the first temporary directory that can be written."""
    return Path(tempfile.mkdtemp(prefix=f"guardrails-{kind}-", dir=base or next(_bases())))


def find_ground(kind: str, installed: Path, programs: Sequence[str], *, copies: bool = True) -> Ground | None:
    """Returns a directory, an account and binaries that fit together, or None.

    Args:
        kind: Becomes part of the directory's name.
        installed: The directory of the package that carries the programs.
        programs: The programs to run, as paths in the package; all in one directory.
        copies: True if the package may be copied to a directory that the account can read.
    """
    account = _unprivileged()
    for base in _bases():
        home = new_home(kind, base)
        ground: Ground | None = None
        try:
            ground = _fitting(home, _trees(home, installed, account, copies=copies), account, programs)
        except OSError:
            continue  # a full or read-only disk, a container without CAP_CHOWN: try the next one
        finally:
            if ground is None:
                shutil.rmtree(home, ignore_errors=True)
        if ground is not None:
            return ground
    return None


def _fitting(
    home: Path, trees: Iterator[Path], account: dict[str, Any], programs: Sequence[str]
) -> Ground | None:
    if account:
        os.chown(home, account["user"], account["group"])
    for tree in trees:
        ground = Ground(home, (tree / programs[0]).parent, account)
        if all(_runs(ground, tree / program) for program in programs):
            return ground
    return None


def _trees(home: Path, installed: Path, account: dict[str, Any], *, copies: bool) -> Iterator[Path]:
    yield installed
    # A virtual environment below a 0700 directory (/root, most homes) is closed to other users.
    if account and copies:
        own = home / "installed"
        # The programs look for their libraries beside the package, in a directory of its own.
        for tree in (installed, installed.with_name(f"{installed.name}.libs")):
            if tree.exists():
                ignore = shutil.ignore_patterns("include", "__pycache__")
                shutil.copytree(tree, own / tree.name, symlinks=True, ignore=ignore)
        for path in (own, *own.rglob("*")):
            os.chown(path, account["user"], account["group"], follow_symlinks=False)
        yield own / installed.name


def _runs(ground: Ground, program: Path) -> bool:
    # Popen changes the directory before it changes the user, so only the user's own `cd` is a test.
    words = ["/bin/sh", "-c", 'cd "$0" && exec "$1" --version', str(ground.home), str(program)]
    asked = subprocess.run(  # noqa: S603 - our own words
        words, check=False, capture_output=True, **ground.surroundings
    )
    return asked.returncode == 0


def _unprivileged() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    import pwd  # noqa: PLC0415 - absent on Windows, which has no root

    others = [entry for entry in pwd.getpwall() if entry.pw_uid != 0]
    entry = next((entry for entry in others if entry.pw_name == "nobody"), next(iter(others), None))
    uid, gid = (entry.pw_uid, entry.pw_gid) if entry else (_NOBODY, _NOBODY)
    return {"user": uid, "group": gid, "extra_groups": []}


def _bases() -> Iterator[Path]:
    usual = tempfile.gettempdir()  # TMPDIR may be readable by root alone
    for base in dict.fromkeys([usual, "/tmp", "/var/tmp", "/dev/shm"]):  # noqa: S108 - mkdtemp names them
        if os.access(base, os.W_OK | os.X_OK):
            yield Path(base)
