"""Where a private server can live: its binaries, a directory, an account that reaches both, a port.

Knows files and users; never how a server is started or stopped. Changes no mode and adds no user.
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
"""Where distributions put servers; the first is not on an ordinary user's PATH."""


@dataclass(frozen=True, slots=True)
class Ground:
    """A place to run.

    Attributes:
        home: A fresh temporary directory.
        binaries: The directory of the programs.
        account: What to add to Popen's arguments so that the child is not root; empty for a user.
    """

    home: Path
    binaries: Path
    account: dict[str, Any] = field(default_factory=dict)

    @property
    def surroundings(self) -> dict[str, Any]:
        """All of Popen's arguments that say where and as whom a child runs."""
        # Nothing of the caller's: PGPORT or LC_ALL of the shell must not decide how a server starts.
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "HOME": str(self.home)}
        return {"cwd": self.home, "env": environment, "stdin": subprocess.DEVNULL, **self.account}


def free_port() -> int:
    """A loopback TCP port that was free a moment ago, below 55535."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port <= _HIGHEST_PORT:
            return port


def package(module: str, wheel: str) -> Path:
    """The directory of an installed package, which is not imported: its start-up code is not for us.

    Raises:
        ImportError: It is not installed; the message names the extra.
    """
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"private servers need {wheel}; install it with: pip install 'guardrails-db[demo]'")
    return Path(spec.submodule_search_locations[0])


def program(name: str) -> Path | None:
    """A program of this machine, on the PATH or where servers usually are; None if there is none."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM}")
    return None if found is None else Path(found)


def last_lines(log: Path) -> str:
    """The end of a log, ready to follow an error message; empty when there is none."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    words = [line.strip() for line in lines[-_TAIL:] if line.strip()]
    return f": {' | '.join(words)}" if words else ""


def new_home(kind: str, base: Path | None = None) -> Path:
    """A fresh directory with mode 0700, in the first temporary directory that can be written."""
    return Path(tempfile.mkdtemp(prefix=f"guardrails-{kind}-", dir=base or next(_bases())))


def find_ground(kind: str, installed: Path, programs: Sequence[str], *, copies: bool = True) -> Ground | None:
    """A directory, an account and binaries that fit together; None when there are none.

    Args:
        kind: Becomes part of the directory's name.
        installed: The directory of the package that carries the programs.
        programs: What must run, as paths in the package; all in one directory.
        copies: Whether the package may be copied to where the account can run it.
    """
    account = _unprivileged()
    for base in _bases():
        home = new_home(kind, base)
        ground: Ground | None = None
        try:
            ground = _fitting(home, _trees(home, installed, account, copies=copies), account, programs)
        except OSError:
            continue  # a full or read-only disk, a container without CAP_CHOWN: the next one may do
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
        # The programs look for their libraries next to the package, in a directory of its own.
        for tree in (installed, installed.with_name(f"{installed.name}.libs")):
            if tree.exists():
                ignore = shutil.ignore_patterns("include", "__pycache__")
                shutil.copytree(tree, own / tree.name, symlinks=True, ignore=ignore)
        for path in (own, *own.rglob("*")):
            os.chown(path, account["user"], account["group"], follow_symlinks=False)
        yield own / installed.name


def _runs(ground: Ground, program: Path) -> bool:
    # Popen changes the directory before it changes the user; only the user's own `cd` tells the truth.
    words = ["/bin/sh", "-c", 'cd "$0" && exec "$1" --version', str(ground.home), str(program)]
    asked = subprocess.run(  # noqa: S603 - our own words
        words, check=False, capture_output=True, **ground.surroundings
    )
    return asked.returncode == 0


def _unprivileged() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    import pwd  # noqa: PLC0415 - absent on Windows, where nobody is root

    others = [entry for entry in pwd.getpwall() if entry.pw_uid != 0]
    entry = next((entry for entry in others if entry.pw_name == "nobody"), next(iter(others), None))
    uid, gid = (entry.pw_uid, entry.pw_gid) if entry else (_NOBODY, _NOBODY)
    return {"user": uid, "group": gid, "extra_groups": []}


def _bases() -> Iterator[Path]:
    usual = tempfile.gettempdir()  # TMPDIR may be for root alone, so there are others to try
    for base in dict.fromkeys([usual, "/tmp", "/var/tmp", "/dev/shm"]):  # noqa: S108 - mkdtemp names them
        if os.access(base, os.W_OK | os.X_OK):
            yield Path(base)
