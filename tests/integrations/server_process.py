"""The servers that tests start: each in a process of its own, asked over sockets."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys

from wire import GET, Client, wait_until

from guardrails.testing._ground import free_port
from guardrails.testing._processes import end

HERE = pathlib.Path(__file__).parent


class Server:
    """A server in a process of its own, which serves an application of this folder.

    Args:
        name: What it is called.
        command: Its command line, with a place for the port.
        log: Where it writes.
        environ: What it finds in its environment besides.
    """

    def __init__(self, name, command, log, environ=None):
        self.name = name
        self.address = "127.0.0.1", free_port()
        self.log = log
        words = command.format(port=self.address[1]).split()
        if words[0] == "gunicorn" and _has_control_socket():
            words.append("--no-control-socket")
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *words],
                cwd=HERE,
                stdout=output,
                stderr=output,
                env=os.environ | (environ or {}),
            )

    def wait(self):
        """Returns when it serves, or fails with what it had to say."""
        wait_until(lambda: self._serves() or self.process.poll() is not None, seconds=60)
        assert self.process.poll() is None, self.log.read_text(errors="replace")
        return self

    def _serves(self):
        try:
            with Client(self.address):
                return True
        except OSError:
            return False

    def figures(self):
        """What is inside now, and which paths the application has been asked for."""
        with Client(self.address) as client:
            client.send(GET % b"/figures")
            return json.loads(client.response()[2])

    def stop(self):
        end(self.process.pid, signal.SIGTERM)
        self.process.wait(10)


def _has_control_socket():
    # A file outside of what the test may write; older gunicorns have none and know no such option.
    from gunicorn.config import KNOWN_SETTINGS  # noqa: PLC0415 - only where there is a gunicorn to start

    return any(setting.name == "control_socket_disable" for setting in KNOWN_SETTINGS)
