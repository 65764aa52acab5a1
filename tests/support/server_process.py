"""The servers that tests start: each in a process of its own, asked over sockets."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import urllib.request

from guardrails.testing._processes import Watchman, end
from support.http_client import GET, Client
from support.paths import APPS, python_path
from support.polling import wait_until


def claimed_address():
    """A free address, and a socket that keeps it for the server that is started for it.

    A port that was free a moment ago may be another process's before the server is up. Linux gives a bound
    port to nobody who asks for any port, and lets a server that allows reuse, as all do, listen on it.
    """
    claim = socket.socket()
    claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    claim.bind(("127.0.0.1", 0))
    address = claim.getsockname()
    if sys.platform != "linux":
        claim.close()
    return address, claim


class Server:
    """A server in a process of its own, which serves an application of ``support/apps``.

    Args:
        name: What it is called.
        command: Its command line, with a place for the port: a module to run, or the path of a program.
        log: Where it writes.
        environ: What it finds in its environment besides.
        folder: Its current folder.
    """

    def __init__(self, name, command, log, environ=None, folder=APPS):
        self.name = name
        self.address, self._claim = claimed_address()
        self.log = log
        words = command.format(port=self.address[1]).split()
        if words[0] == "gunicorn" and _has_control_socket():
            words.append("--no-control-socket")
        program = [] if pathlib.Path(words[0]).is_absolute() else [sys.executable, "-m"]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*program, *words],
                cwd=folder,
                stdout=output,
                stderr=output,
                env=os.environ | {"PYTHONPATH": python_path()} | (environ or {}),
            )
        self._watchman = Watchman(self.process.pid, signal.SIGTERM)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def wait(self, path=None):
        """Returns when it takes connections, or answers a path; fails with what it had to say."""
        wait_until(lambda: self._serves(path) or self.process.poll() is not None, seconds=60)
        assert self.process.poll() is None, self.log.read_text(errors="replace")
        return self

    def _serves(self, path):
        try:
            if path is not None:
                self.ask(path)
            with Client(self.address):
                return True
        except OSError:
            return False

    def ask(self, path):
        """The JSON that it answers, on a connection of its own."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.address[1]}{path}", timeout=30) as answer:
            return json.load(answer)

    def figures(self):
        """What is inside now, and which paths the application has been asked for."""
        with Client(self.address) as client:
            client.send(GET % b"/figures")
            return json.loads(client.response()[2])

    def stop(self):
        """Ends it, if it still runs."""
        if self.process.poll() is None:
            end(self.process.pid, signal.SIGTERM)
        self.process.wait(20)
        self._claim.close()
        self._watchman.dismiss()


def _has_control_socket():
    # A file outside of what the test may write; older gunicorns have none and know no such option.
    from gunicorn.config import KNOWN_SETTINGS  # noqa: PLC0415 - only where there is a gunicorn to start

    return any(setting.name == "control_socket_disable" for setting in KNOWN_SETTINGS)
