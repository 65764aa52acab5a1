"""Process trees, and the watchman, which ends one when its owner has died.

Depends on pids and signals. Must not import the package: it runs as a script in the watchman's process.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

try:
    import psutil  # type: ignore[import-untyped]  # it ships no type information
except ImportError as error:
    raise ImportError(
        "private servers need psutil; install it with: pip install 'guardrails-db[demo]'"
    ) from error

__all__ = ["Watchman", "end", "freeze", "kill", "pids", "thaw"]

_TIMEOUT = 5.0

_AT_REST = {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}
"""States of a stopped process. One that has just ended stays a zombie, because its parent is stopped."""

# Imports this file only when there is something to end: most watchmen have nothing to do.
_WAIT = """
import sys
if not sys.stdin.buffer.read(1):
    import runpy
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def pids(eldest: int) -> list[int]:
    """Returns the process and its descendants, the eldest first; empty when it has ended."""
    return [member.pid for member in _family(eldest)]


def freeze(eldest: int) -> None:
    """Stops the tree (SIGSTOP), parents first, so that no child is started meanwhile.

    A signal takes a moment: another thread of the process may answer one more query before it stops.
    """
    give_up = time.monotonic() + _TIMEOUT
    for member in _family(eldest):
        with contextlib.suppress(psutil.NoSuchProcess):
            member.suspend()
            while member.status() not in _AT_REST and time.monotonic() < give_up:
                time.sleep(0.001)


def thaw(eldest: int) -> None:
    """Continues a frozen tree (SIGCONT)."""
    for member in reversed(_family(eldest)):
        with contextlib.suppress(psutil.NoSuchProcess):
            member.resume()


def kill(eldest: int) -> None:
    """Kills the tree (SIGKILL)."""
    for member in _family(eldest):
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()


def end(eldest: int, farewell: int) -> None:
    """Signals the eldest to end its tree; kills the processes that remain after 5 s."""
    family = _family(eldest)
    thaw(eldest)  # a frozen process handles no signal
    for member in family[:1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.send_signal(farewell)
    _, deaf = psutil.wait_procs(family, timeout=_TIMEOUT)
    for member in deaf:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(deaf, timeout=_TIMEOUT)


def _family(eldest: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(eldest)
        if process.status() == psutil.STATUS_ZOMBIE:
            return []
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


class Watchman:
    """A process that ends a tree, and removes its directory if it has one, when this process dies.

    The watchman reads a pipe whose other end only this process holds. A byte means that the owner has cleaned
    up. The end of the stream without a byte means that the owner has died.
    """

    def __init__(self, eldest: int, farewell: signal.Signals, home: Path | None = None) -> None:
        words = [str(eldest), str(int(farewell)), *([] if home is None else [str(home)])]
        self._process = subprocess.Popen(  # noqa: S603 - our own file
            [sys.executable, "-P", "-c", _WAIT, __file__, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in the terminal must not end the watchman
        )

    def dismiss(self) -> None:
        """Ends the watchman; the caller cleans up itself."""
        self._process.communicate(b".")


if __name__ == "__main__":  # pragma: no cover - the watchman's process, whose owner has died
    end(int(sys.argv[1]), int(sys.argv[2]))
    for home in sys.argv[3:]:
        shutil.rmtree(home, ignore_errors=True)
