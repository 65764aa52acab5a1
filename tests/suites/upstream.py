"""Other people's test suites, run twice: bare, and with guards underneath. The outcomes must be the same.

To add a suite:

1. Write ``test_<library>_suite.py``. Call `sdist` for the source distribution of the installed version.
2. Start the suite's own runner with `start`, twice, with an environment that tells bare from guarded. Have
   it write its outcomes as JSON lines (`Outcomes` reads them), or let pytest write JUnit XML (`read_junit`).
3. Call `differences` with both and with the list of the differences that are meant, each with its reason.

Must not know any library.
"""

from __future__ import annotations

import fnmatch
import functools
import importlib.metadata
import json
import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ET

import pytest

__all__ = ["Run", "differences", "read_junit", "read_lines", "sdist", "start"]


def sdist(name, cache):
    """The unpacked source distribution of an installed library; a visible skip where there is no index.

    Args:
        name: The distribution's name.
        cache: A folder to keep it in.
    """
    version = importlib.metadata.version(name)
    unpacked = cache / f"{name}-{version}"
    if not unpacked.exists():
        archive = _download(name, version, cache)
        with tarfile.open(archive) as tar:
            tar.extractall(cache, filter="data")
    return unpacked


@functools.cache
def _download(name, version, cache):
    words = ["download", "--quiet", "--no-binary", ":all:", "--no-deps", f"{name}=={version}"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words, "--dest", str(cache)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    archives = [*cache.glob(f"{name}-{version}.tar.gz")]
    if done.returncode or not archives:
        pytest.skip(f"the source of {name} {version} cannot be downloaded: {done.stderr.strip()[-200:]}")
    return archives[0]


class Run:
    """One run of a suite, under way.

    Args:
        words: The command, after the interpreter.
        cwd: Where it runs.
        environment: What it finds in its environment besides ours.
        output: The file for what it prints.
    """

    def __init__(self, words, cwd, environment, output):
        self._output = output
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, *words], cwd=cwd, env=os.environ | environment, stdout=file, stderr=file
            )

    def wait(self, seconds):
        """Waits for its end and returns what it printed.

        Failed tests are no reason to fail here: they may fail bare as well.
        """
        try:
            self._process.wait(seconds)
        finally:
            self.stop()
        return self._output.read_text(errors="replace")

    def stop(self):
        """Ends it, if it runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


start = Run


def read_lines(path, printed):
    """Outcomes by test, from JSON lines of ``[test, outcome]``; without any, fails with what was printed."""
    assert path.exists(), printed[-4000:]
    outcomes = dict(json.loads(line) for line in path.read_text().splitlines())
    assert outcomes, printed[-4000:]
    return outcomes


def read_junit(path, printed):
    """Outcomes by test, from JUnit XML as pytest writes it."""
    assert path.exists(), printed[-4000:]
    outcomes = {}
    for case in ET.parse(path).iter("testcase"):
        kinds = [child.tag for child in case if child.tag in {"failure", "error", "skipped"}]
        outcomes[f"{case.get('classname')}::{case.get('name')}"] = kinds[0] if kinds else "passed"
    assert outcomes, printed[-4000:]
    return outcomes


def differences(bare, guarded, meant):
    """Lists what differs and is not meant, and what is meant to differ and does not.

    Args:
        bare: Outcomes by test.
        guarded: The same, with guards.
        meant: Reasons, by a test's name or a pattern of names.

    Returns:
        Lines to read; none if all is as it should be. A reason for a test that was not run is no fault: it is
        of another version, or not selected.
    """
    lines, used = [], set()
    for test in sorted(bare.keys() | guarded.keys()):
        before, after = bare.get(test, "not run"), guarded.get(test, "not run")
        if before == after:
            continue
        patterns = [pattern for pattern in meant if fnmatch.fnmatchcase(test, pattern)]
        used.update(patterns)
        if not patterns:
            lines.append(f"{test}: {before} bare, {after} guarded")
    unused = [pattern for pattern in sorted(meant.keys() - used) if fnmatch.filter(bare, pattern)]
    return lines + [f"{pattern}: meant to differ, and does not" for pattern in unused]
