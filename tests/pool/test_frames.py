"""Which lines around a caller are the application's."""

from __future__ import annotations

import sysconfig
import threading
from pathlib import Path

import pytest

from guardrails._pool.frames import lines, site

PATHS = sysconfig.get_paths()
INSTALLED = Path(PATHS["purelib"])

SOURCE = """
import sys

def look(site, found):
    found.append(site(sys._getframe()))

def call(given):
    return given()
"""


def code_in(filename):
    """Two functions in a file of that name."""
    space = {}
    exec(compile(SOURCE, str(filename), "exec"), space)
    return space


def test_caller_without_a_line_of_the_application_has_no_place():
    """A server's thread runs a framework: no line of Python's own threads stands for the application's."""
    found = []
    thread = threading.Thread(target=code_in(INSTALLED / "django/db/utils.py")["look"], args=(site, found))
    thread.start()
    thread.join()
    assert found == [()]


@pytest.mark.parametrize("filename", ["<stdin>", "<string>"])
def test_code_without_a_file_is_the_application_if_it_is_all_there_is(filename):
    """As in an interactive session."""
    inner = code_in(INSTALLED / "django/db/utils.py")["look"]
    outer = compile("inner(site, found)", filename, "exec")

    class Outermost:
        f_back, f_code, f_lasti = None, outer, 2

    class Frame:
        f_back, f_code, f_lasti = Outermost, inner.__code__, 0

    assert lines(site(Frame)) == (f"{filename}:1 in <module>",)


@pytest.mark.parametrize(
    "filename",
    [
        INSTALLED / "sentry_sdk/integrations/django/__init__.py",
        INSTALLED / "opentelemetry/instrumentation/dbapi/__init__.py",
        INSTALLED / "celery/app/trace.py",
        Path(PATHS["scripts"]) / "gunicorn",
        Path(PATHS["stdlib"]) / "threading.py",
    ],
    ids=["sentry", "opentelemetry", "celery", "a script that pip made", "Python"],
)
def test_line_beside_the_application_is_none_of_its_lines(filename):
    """A tracer wraps the driver's calls, a worker and a script call the application."""
    found = []
    files = code_in(filename)
    files["call"](lambda: files["look"](site, found))
    (where,) = found
    assert "in test_line_beside_the_application_is_none_of_its_lines" in lines(where)[0]
    assert str(filename) not in {code.co_filename for code, _ in where}


def test_program_beside_the_scripts_is_the_application():
    """A file of the application in the folder of scripts keeps its ``.py``."""
    found = []
    code_in(Path(PATHS["scripts"]) / "job.py")["look"](site, found)
    assert lines(found[0])[0].endswith("job.py:5 in look")
