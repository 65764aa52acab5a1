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

    def run(self, folder, *words, environ=None, output=None):
        """Runs a module with its arguments.

        Args:
            folder: Its current folder, which is the first on its path.
            words: The module, and its arguments.
            environ: Its environment, if not that of the tests.
            output: The folder of the files that it prints to, if not its current one.

        Returns:
            Its exit code, and its stdout and stderr.
        """
        output = output or folder
        order = {"folder": str(folder), "words": words, "environ": environ, "output": str(output)}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return code, "".join((output / name).read_text() for name in ("stdout", "stderr"))
