"""The tutorial, followed by the letter: its files are written, its commands run, its output compared."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from guardrails.testing._processes import end
from support.paths import DOCS, python_path
from support.polling import poll
from support.server_process import claimed_address

PAGE = (DOCS / "tutorial.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
SHOWN = re.findall(r"^```console\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)

LINES = [
    r"\d+ refused \(no slot came free in time: \d+.*\); by route: GET /orders \d+; such as tutorial",
    r"circuit 'GET /orders' of 'shop': closed -> open \(stalled\): every slot has been in a call",
    r"pool 'shop': \d+ x tutorial/shop\.py:21 in count, /orders \(sessions ",
    r" wait for a lock on 'orders' for up to ",
]
"""Patterns of what the page shows of the service's terminal; the numbers depend on the moment."""


def without_times(output):
    """The output without what differs each time: times, limits, dates, one caller at a full queue."""
    output = output.replace("queue_timeout 9, bulkhead_full 1", "queue_timeout 10")
    return re.sub(
        r"process \d+ on [^;]+|\d+\.\d+ s|timeout=\d+\.\d+|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "?", output
    )


class Reader:
    """Follows the page in a folder.

    Args:
        folder: Where the files are written.
    """

    def __init__(self, folder):
        self.folder = folder
        (_, self.port), self.claim = claimed_address()
        self.environ = os.environ | {"PYTHONPATH": python_path()}
        self.shown = iter(SHOWN)
        database, self.plain, users, self.guarded = PROGRAMS
        (folder / "database.py").write_text(database)
        (folder / "users.py").write_text(users.replace(":8000", f":{self.port}"))

    @contextlib.contextmanager
    def database(self):
        """Starts the database, and copies its address."""
        with subprocess.Popen(
            [sys.executable, "database.py"],
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            self.typing, self.said = process.stdin, process.stdout
            command, address, prompt = next(self.shown).splitlines()
            assert command == "$ python database.py"
            name, _, self.environ["DATABASE_URL"] = self.said.readline().strip().partition("=")
            assert name == address.partition("=")[0] == "export DATABASE_URL"
            self.prompt(prompt)
            yield
            process.stdin.close()

    def prompt(self, words):
        """Waits for a question of the database's terminal."""
        seen = ""
        while not seen.endswith(words):
            seen += self.said.read(1)

    def press_enter(self):
        """Locks the table, or releases it."""
        self.typing.write("\n")
        self.typing.flush()
        self.prompt(": ")

    @contextlib.contextmanager
    def service(self, program, **environ):
        """Starts a version of the service; returns when it takes connections."""
        (self.folder / "shop.py").write_text(program)
        log = self.folder / "log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [Path(sys.executable).parent / "uvicorn", "shop:app", "--port", str(self.port)],
                cwd=self.folder,
                env=self.environ | environ,
                stdout=output,
                stderr=output,
            )
        try:
            poll(lambda: process.poll() is not None or self.answers(), "the service is there", 60)
            yield log
        finally:
            end(process.pid, signal.SIGTERM)
            process.wait(20)

    def answers(self):
        """True when the service takes connections."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def runs(self, *words):
        """What a command prints."""
        words = [word.replace(":8000", f":{self.port}") for word in words]
        return subprocess.run(
            words,
            cwd=self.folder,
            env=self.environ,
            stdout=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        ).stdout

    def users_come(self):
        """What the users see."""
        return self.runs(sys.executable, "users.py")

    def sees(self, output):
        """The output is that of the page's next command."""
        command, _, expected = next(self.shown).partition("\n")
        assert without_times(output) == without_times(expected), command

    def sees_in_the_end(self, follow, count):
        """The outputs are those of the page's next commands, in one of three tries.

        On a loaded machine connections and users come late, and a guard refuses others than the page shows.
        """
        expected = [without_times(next(self.shown).partition("\n")[2]) for _ in range(count)]
        for _ in range(3):
            seen = [without_times(output) for output in follow()]
            if seen == expected:
                return
        assert seen == expected


@pytest.fixture
def reader(tmp_path):
    folder = tmp_path / "tutorial"
    folder.mkdir()
    reader = Reader(folder)
    with reader.claim:
        yield reader


@pytest.mark.slow
@pytest.mark.timeout(300)  # six tries of 20 s on a loaded machine
def test_every_step_shows_what_the_page_shows(reader):
    """Users wait three seconds for an answer, twice, and circuits open and close meanwhile."""
    with reader.database():
        with reader.service(reader.plain):
            reader.sees(reader.users_come())
            reader.press_enter()
            reader.sees(reader.users_come())
            reader.press_enter()
        reader.sees_in_the_end(partial(guarded, reader), 4)
        reader.sees_in_the_end(partial(in_shadow, reader), 3)


def guarded(reader):
    """What is seen with a guard: all is well, a lock, the lock a second time, all is well again."""
    with reader.service(reader.guarded) as log:
        well = reader.users_come()
        reader.press_enter()
        locked = reader.users_come()
        again = until(lambda seen: "504" not in seen, reader.users_come)  # a probe may have been among them
        for line in LINES:
            found = partial(re.search, line)
            poll(lambda found=found: found(log.read_text()), f"the log has {line}\n{log.read_text()}")
        reader.press_enter()
        healed = until(lambda seen: "503" not in seen, reader.users_come)
    return [well, locked, again, healed]


def in_shadow(reader):
    """What is seen with a guard in shadow: all is well, a lock, and the sums when all calls have ended."""
    shadow = [sys.executable, "-m", "guardrails.cli", "shadow", "http://127.0.0.1:8000/internal"]
    with reader.service(reader.guarded, GUARDRAILS_MODE="shadow"):
        well = reader.users_come()
        reader.press_enter()
        locked = reader.users_come()
        reader.press_enter()
        sums = until(
            lambda seen: "of 50 calls" in seen and "would have stopped 10" in seen, reader.runs, *shadow
        )
    return [well, locked, sums]


def until(is_it, look, *words):
    """The first of ten outputs that is as awaited, or the last."""
    for _ in range(10):
        seen = look(*words)
        if is_it(seen):
            break
    return seen


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_the_alert_rules_are_as_many_as_shown(reader):
    (reader.folder / "guardrails.rules.yml").write_text(
        reader.runs(
            sys.executable,
            "-m",
            "guardrails.cli",
            "alerts",
            "--runbooks",
            "https://wiki.example.org/runbooks",
        )
    )
    expected = SHOWN[-1].split("\n", 2)[2]
    assert reader.runs("promtool", "check", "rules", "guardrails.rules.yml").strip() == expected.strip()
