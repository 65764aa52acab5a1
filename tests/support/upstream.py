"""Other people's test suites, run twice: bare, and with guards underneath. The outcomes must be the same.

To add a suite:

1. Write ``test_<library>_suite.py``. Call `sdist` for the source distribution of the installed version.
2. If pytest runs the suite, write a plugin in ``suite_plugins/`` that puts guards where the tests make what
   can be guarded, and call `run_pytest`. Otherwise start the suite's own runner with `start`, twice, with an
   environment that tells bare from guarded, and have it write its outcomes for `read_lines`.
3. Assert how much was run and guarded, and that `differences` finds none but those that are meant, each
   with its reason.

Must not know any library.
"""

from __future__ import annotations

import fnmatch
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tarfile
import typing
import xml.etree.ElementTree as ET

import pytest

from support.paths import ROOT, SUPPORT

__all__ = [
    "Outcomes",
    "Run",
    "chosen",
    "differences",
    "packages",
    "read_junit",
    "read_lines",
    "run_pytest",
    "sdist",
    "start",
]

NO_PAGES = shutil.ignore_patterns("doc", "docs")
PLUGINS = SUPPORT / "suite_plugins"


def chosen(pinned, whole):
    """The pinned selection, or the whole one with GUARDRAILS_SUITES=whole in the environment."""
    return whole if os.environ.get("GUARDRAILS_SUITES") == "whole" else pinned


def sdist(name, cache):
    """The unpacked source distribution of an installed library; a visible skip where there is no index.

    Args:
        name: The distribution's name.
        cache: A folder to keep it in.
    """
    version = importlib.metadata.version(name)
    unpacked = cache / f"{name}-{version}"
    if not unpacked.exists():
        _pip("download", "--no-binary", name, "--no-deps", "--dest", str(cache), f"{name}=={version}")
        with tarfile.open(cache / f"{name}-{version}.tar.gz") as tar:
            tar.extractall(cache, filter="data")
    return unpacked


def packages(names, cache):
    """A folder for PYTHONPATH with packages that only a suite needs; a visible skip where there is no index.

    Our own environment stays without them, and so without their plugins for pytest.
    """
    folder = cache / "-".join(names)
    if not folder.exists():
        _pip("install", "--target", str(folder), *names)
    return str(folder)


def _pip(*words):
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", *words],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"pip cannot fetch what the suite needs: {done.stderr.strip()[-200:]}")


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


class Outcomes(typing.NamedTuple):
    """Outcomes by test, bare and guarded, and the number of things that the plugin guarded."""

    bare: dict[str, str]
    guarded: dict[str, str]
    guards: int

    @property
    def passed(self):
        """How many tests pass bare; those that fail prove nothing."""
        return [*self.bare.values()].count("passed")


def run_pytest(source, plugin, words, folder, *, seconds, path=(), environment=None):
    """Runs tests with pytest, bare and guarded side by side.

    None of the plugins of our own environment is loaded.

    Args:
        source: The folder of the source; pytest runs in a copy of it.
        plugin: The module in ``suite_plugins/`` that guards what the tests make.
        words: pytest's arguments, or those by ``"bare"`` and ``"guarded"``, where each has its own server.
        folder: Where reports and logs are written.
        seconds: After so long, a run is killed and the test fails.
        path: More folders for PYTHONPATH.
        environment: More for the environment of both, or those by ``"bare"`` and ``"guarded"``.
    """
    counted = folder / "guards"
    counted.write_text("0")
    runs, outcomes = {}, {}
    for kind, told in {"bare": {}, "guarded": {"SUITE_GUARDS": str(counted)}}.items():
        options = ["-p", plugin, "-p", "no:cacheprovider", "-q", f"--junitxml={folder}/{kind}.xml"]
        selection = _of(kind, words)
        told |= {
            "PYTEST_ADDOPTS": "",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONPATH": os.pathsep.join([*path, str(ROOT), str(PLUGINS)]),
            **_of(kind, environment or {}),
        }
        tree = shutil.copytree(source, folder / kind, ignore=NO_PAGES)  # tests write files beside them
        runs[kind] = start(["-m", "pytest", *options, *selection], tree, told, folder / f"{kind}.log")
    try:
        for kind, run in runs.items():
            outcomes[kind] = read_junit(folder / f"{kind}.xml", run.wait(seconds))
    finally:
        for run in runs.values():
            run.stop()
    return Outcomes(**outcomes, guards=int(counted.read_text()))


def _of(kind, both):
    """What is for one kind of run, if it is given by kind."""
    return both[kind] if isinstance(both, dict) and kind in both else both


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
