"""What a browser lets the page of another origin read of a refusal, with the settings that the pages tell."""

from __future__ import annotations

import contextlib
import html
import os
import re
import shutil
import subprocess
import tempfile

import pytest

from support.server_process import Server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

READ = "503 true circuit_open"
"""The status, whether Retry-After can be read, and the code in the body."""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_page_of_another_origin_reads_status_body_and_retry_after(tmp_path):
    """In each framework, wherever it is refused; the wrong order and a header not exposed are seen, too."""
    asgi = Server("uvicorn", "uvicorn cors_app:app --log-level warning --port {port}", tmp_path / "asgi")
    wsgi = Server("gunicorn", "gunicorn cors_app:shop --bind 127.0.0.1:{port}", tmp_path / "wsgi")
    with contextlib.ExitStack() as stack:
        stack.callback(asgi.stop)
        stack.callback(wsgi.stop)
        asgi.wait()
        wsgi.wait()
        # It leaves folders in the common one. A longer path would not do for the name of a socket in it.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="browser-"))
        seen = subprocess.run(
            [
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                f"--user-data-dir={tmp_path}/profile",
                "--virtual-time-budget=10000",
                "--dump-dom",
                f"http://127.0.0.1:{asgi.address[1]}/#{wsgi.address[1]}",
            ],
            capture_output=True,
            env={**os.environ, "TMPDIR": folder},
            text=True,
            timeout=90,
            check=True,
        ).stdout
    assert "<title>asked</title>" in seen
    shown = html.unescape(re.search("<pre>(.*?)</pre>", seen, re.DOTALL)[1])
    assert shown.splitlines() == [
        f"fastapi/edge {READ}",
        f"django/edge {READ}",
        f"fastapi/inside {READ}",
        f"django/inside {READ}",
        f"flask/inside {READ}",
        f"fastapi/marked {READ}",
        f"django/marked {READ}",
        f"flask/marked {READ}",
        "not exposed 503 false circuit_open",
        "wrong order cannot be read",
    ]
