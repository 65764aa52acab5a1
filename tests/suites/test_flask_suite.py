"""Flask's and Werkzeug's own tests, bare and guarded: the same outcome, but for what is listed here."""

from __future__ import annotations

import pytest

from support import upstream

SECONDS = 200

WORDS = {
    "flask": ["tests"],
    # Files are parameters of the two tests of send_file, so that their names hold the folder of the run.
    "werkzeug": [
        *["-p", "pytest_timeout", "-m", "not dev_server", "tests"],
        *["--deselect=tests/test_send_file.py::test_path"],
        *["--deselect=tests/test_send_file.py::test_from_directory"],
    ],
}
"""All of them, but for those that start a server in another process."""

NEEDED = {"flask": [], "werkzeug": ["ephemeral-port-reserve"]}

MEANT: dict[str, dict[str, str]] = {"flask": {}, "werkzeug": {}}


@pytest.mark.slow
@pytest.mark.first
@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize(("library", "tests", "guards"), [("flask", 350, 200), ("werkzeug", 900, 50)])
def test_the_librarys_own_tests_end_as_they_do_without_a_guard(
    library, tests, guards, tmp_path, tmp_path_factory
):
    """Flask's with the extension in every application, Werkzeug's with the middleware around it."""
    cache = tmp_path_factory.getbasetemp()
    source = upstream.sdist(library, cache)
    path = [upstream.packages(NEEDED[library], cache)] if NEEDED[library] else []
    ran = upstream.run_pytest(
        source, f"guarded_{library}", WORDS[library], tmp_path, seconds=SECONDS, path=path
    )
    assert ran.passed > tests
    assert ran.guards > guards
    assert upstream.differences(ran.bare, ran.guarded, MEANT[library]) == []
