"""Chromium without a window, steered over its own protocol: one page of a size and colour scheme."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import urllib.request
from pathlib import Path

from websockets.sync.client import connect

from guardrails.testing._processes import Watchman, end
from support.polling import wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

_QUIET = (
    *(
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--hide-scrollbars",
    ),
    *(
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-extensions",
    ),
)


class Browser:
    """A browser with one page.

    Args:
        profile: A folder of its own.

    Attributes:
        faults: The errors of scripts and the requests that the page's policy did not allow.
        asked: The addresses that the page loaded.
    """

    def __init__(self, profile):
        self.faults, self.asked = [], []
        self._number = 0
        command = [
            CHROMIUM,
            *_QUIET,
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
            "about:blank",
        ]
        # It leaves folders in the common one. A longer path would not do for the name of a socket in it.
        self._folder = tempfile.TemporaryDirectory(prefix="browser-")
        self._process = subprocess.Popen(
            command,
            env={**os.environ, "TMPDIR": self._folder.name},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._watchman = Watchman(self._process.pid, signal.SIGTERM, Path(self._folder.name))
        try:
            port_file = profile / "DevToolsActivePort"
            wait_until(lambda: port_file.exists() and port_file.read_text().count("\n"), seconds=60)
            port = port_file.read_text().split("\n", 1)[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
                (page,) = [each for each in json.load(answer) if each["type"] == "page"]
            self._connection = connect(page["webSocketDebuggerUrl"], max_size=None)
            self._socket = self._connection.__enter__()
        except BaseException:
            self._end()
            raise
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.order(f"{domain}.enable")
        self.begin()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._connection.__exit__(None, None, None)
        self._end()

    def _end(self):
        end(self._process.pid, signal.SIGTERM)
        self._process.wait()
        self._watchman.dismiss()
        self._folder.cleanup()

    def begin(self, *, width=1280, height=900, dark=False):
        """Leaves the page, and forgets what was noted of it.

        Args:
            width: Of the next page, in CSS pixels.
            height: Likewise.
            dark: Whether the user prefers dark colours.
        """
        self.open("about:blank")
        self.wait("location.href === 'about:blank'")
        self.faults, self.asked = [], []
        self.resize(width, height)
        self.prefer(dark=dark)

    def order(self, method, **words):
        """Sends one order of the protocol and returns its result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": words}))
        while True:
            said = json.loads(self._socket.recv(timeout=60))
            if said.get("id") == self._number:
                assert "error" not in said, said
                return said["result"]
            self._note(said)

    def _note(self, said):
        words = said.get("params", {})
        if said["method"] == "Runtime.exceptionThrown":
            self.faults.append(words["exceptionDetails"]["exception"].get("description"))
        elif said["method"] == "Log.entryAdded" and words["entry"]["level"] == "error":
            self.faults.append(words["entry"]["text"])
        elif said["method"] == "Network.requestWillBeSent":
            self.asked.append(words["request"]["url"])

    def resize(self, width, height):
        """Makes the page as wide and high as a screen."""
        self.order(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def prefer(self, *, dark):
        """Sets the preferred colours."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.order("Emulation.setEmulatedMedia", features=[feature])

    def open(self, address):
        """Loads a page."""
        self.order("Page.navigate", url=address)

    def read(self, expression):
        """Returns the value of an expression in the page."""
        said = self.order("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    def wait(self, expression, seconds=30):
        """Returns when an expression is true."""
        wait_until(lambda: self.read(expression), seconds=seconds)

    def words(self):
        """The text of the page, as a reader sees it."""
        return self.read("document.body.innerText")

    def press(self, key):
        """Presses a key."""
        code = {"Tab": 9, "Enter": 13}[key]
        words = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.order("Input.dispatchKeyEvent", type="keyDown", text="\r" if key == "Enter" else "", **words)
        self.order("Input.dispatchKeyEvent", type="keyUp", **words)

    def picture(self):
        """The whole page as a PNG."""
        size = self.order("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        said = self.order("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(said["data"])
