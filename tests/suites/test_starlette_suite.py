"""Starlette's own tests, bare and with the middleware: the same outcome, but for what is listed here."""

from __future__ import annotations

import pytest

from support import upstream

SECONDS = 200
WORDS = ["-p", "anyio.pytest_plugin", "-k", "not trio", "tests"]
"""All of them, on asyncio: the middleware is for asyncio."""

MEANT: dict[str, str] = {}


@pytest.mark.slow
@pytest.mark.first
@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("place", ["around", "inside"])
def test_starlettes_own_tests_end_as_they_do_without_the_middleware(place, tmp_path, tmp_path_factory):
    """The middleware is around what a test client calls, or added to each Starlette."""
    cache = tmp_path_factory.getbasetemp()
    source = upstream.sdist("starlette", cache)
    ran = upstream.run_pytest(
        source,
        "guarded_starlette",
        WORDS,
        tmp_path,
        seconds=SECONDS,
        path=[upstream.packages(["httpx2", "python-multipart", "trio"], cache)],
        environment={"SUITE_PLACE": place},
    )
    assert ran.passed > 500
    assert ran.guards > 200
    assert upstream.differences(ran.bare, ran.guarded, MEANT) == []
