"""Every Python snippet of the README and the docs runs, in the order a reader meets them."""

from __future__ import annotations

import re
import types

import fakeredis
import pytest
from sqlalchemy import create_engine
from starlette.applications import Starlette

from support import django_lab  # noqa: F401 - configures Django
from support.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / ".github").glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def snippets(page):
    """The code blocks of a page that say they are Python, each padded so that errors show its own lines."""
    text = page.read_text()
    for match in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        line = text.count("\n", 0, match.start(1))
        yield "\n" * line + match.group(1)


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(snippets(page))],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_snippets_run(page, tmp_path, monkeypatch):
    """A page's blocks run one after the other, given the engine, client and app any reader has."""
    monkeypatch.chdir(tmp_path)  # a block may write a file
    engine = create_engine(f"sqlite:///{tmp_path}/db")
    # A module of its own, so that dataclasses and type hints inside find their names.
    module = types.ModuleType(f"snippets_of_{page.stem}")
    module.__dict__.update(engine=engine, client=fakeredis.FakeRedis(), app=Starlette())
    for code in snippets(page):
        exec(compile(code, str(page), "exec"), module.__dict__)
    engine.dispose()


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_to_files_and_headings():
    """A relative link in the README or the docs names a file that exists, and a heading of it."""
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text()):
            found = (page.parent / target) if target else page
            assert found.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(found), f"{page.name}: {target}#{anchor}"
