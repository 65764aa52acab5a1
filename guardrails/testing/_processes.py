"""Process trees, and the watchman who clears one away when nobody else can.

Knows pids and signals; never what the processes are. Runs as a script in the watchman's own process,
so it imports nothing of ours.
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

_PATIENCE = 5.0


def pids(eldest: int) -> list[int]:
    """The process and its descendants, the eldest first; empty when it has ended."""
    return [member.pid for member in _family(eldest)]


def freeze(eldest: int) -> None:
    """Stops the tree in its tracks, parents first so that none is born meanwhile.

    A signal is only a request: another thread of the process may answer one more query before it stops.
    """
    give_up = time.monotonic() + _PATIENCE
    for member in _family(eldest):
        with contextlib.suppress(psutil.NoSuchProcess):
            member.suspend()
            while member.status() != psutil.STATUS_STOPPED and time.monotonic() < give_up:
                time.sleep(0.001)


def thaw(eldest: int) -> None:
    """Lets a frozen tree go on."""
    for member in reversed(_family(eldest)):
        with contextlib.suppress(psutil.NoSuchProcess):
            member.resume()


def kill(eldest: int) -> None:
    """Ends the tree at once (SIGKILL)."""
    for member in _family(eldest):
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()


def end(eldest: int, farewell: int) -> None:
    """Asks the eldest to end its tree with a signal; after 5 s whoever is left is killed."""
    family = _family(eldest)
    thaw(eldest)  # a frozen process hears nothing
    for member in family[:1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.send_signal(farewell)
    _, deaf = psutil.wait_procs(family, timeout=_PATIENCE)
    for member in deaf:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(deaf, timeout=_PATIENCE)


def _family(eldest: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(eldest)
        if process.status() == psutil.STATUS_ZOMBIE:
            return []
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


class Watchman:
    """A process that outlives us by a moment: it ends a tree and removes its directory if we die.

    He reads a pipe whose other end only we hold. A byte tells him that all is well; the end of the
    stream without one tells him that we are gone, however that came about.
    """

    def __init__(self, eldest: int, farewell: signal.Signals, home: Path) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - our own file
            [sys.executable, "-P", __file__, str(eldest), str(int(farewell)), str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C in the terminal must not end the one who cleans up
        )

    def dismiss(self) -> None:
        """Sends him home; what he watched is ours to clear away."""
        self._process.communicate(b".")


def _watch(eldest: int, farewell: int, home: str) -> None:
    if not sys.stdin.buffer.read(1):
        end(eldest, farewell)
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":  # pragma: no cover - the watchman's process
    _watch(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
