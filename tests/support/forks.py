"""Runs commands in forks of one process that has imported their libraries: 50 ms each instead of seconds."""

from __future__ import annotations

import json
import subprocess
import sys

from support.paths import PROCESSES


class ForkServer:
    """A Python that has imported some modules, and runs ``-m`` commands in forks of itself.

    Args:
        modules: What it imports before the first command.
    """

    def __init__(self, *modules):
        command = [sys.executable, PROCESSES / "fork_server.py", *modules]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def run(self, folder, *words):
        """Runs a module with its arguments in a folder; returns its exit code, and its stdout and stderr."""
        self._process.stdin.write(json.dumps({"folder": str(folder), "words": words}) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return code, "".join((folder / name).read_text() for name in ("stdout", "stderr"))
