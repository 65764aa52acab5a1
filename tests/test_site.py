"""The site that is made of the pages builds without a warning, and has every page and every public name."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys

import pytest
from sphinx.util.inventory import InventoryFile

from guardrails import integrations
from support.paths import DOCS, ROOT

MODULES = [
    *("guardrails", "guardrails.errors", "guardrails.events", "guardrails.fleet", "guardrails.simulation"),
    *("guardrails.testing", "guardrails.testing.servers", "guardrails.integrations.django.cache"),
    *(each.name for each in pkgutil.iter_modules(integrations.__path__, "guardrails.integrations.")),
]
"""Every module that users import from."""


@pytest.fixture
def site(tmp_path):
    """The folder of the built site. Every warning is an error, a link to no page or heading included."""
    folder = tmp_path / "site"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-E", str(DOCS), str(folder)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)
    assert (built.returncode, built.stderr) == (0, "")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_site_has_every_page_and_every_public_name(site):
    """A name of an ``__all__`` has an entry, under its module or ``guardrails``. One test, so one build."""
    pages = {page.relative_to(DOCS).with_suffix(".html") for page in DOCS.rglob("*.md")}
    assert pages <= {page.relative_to(site) for page in site.rglob("*.html")}
    named = re.findall(r"url\((.+?)\)", (site / "_static" / "site.css").read_text())
    assert [name for name in named if not (site / "_static" / name).exists()] == []
    with (site / "objects.inv").open("rb") as file:
        entries = InventoryFile.load(file, "", str.__add__)
    listed = {name for kind in entries.values() for name in kind}
    modules = [importlib.import_module(name) for name in MODULES if "._" not in name]
    public = {(module.__name__, name) for module in modules for name in module.__all__}
    missing = {pair for pair in public if not {".".join(pair), f"guardrails.{pair[1]}"} & listed}
    assert missing == set()


def test_every_page_has_its_place_in_the_contents():
    """The trees of index.md name each page once; Sphinx would only warn."""
    trees = re.findall(
        r"^```\{toctree\}\n(.*?)^```", (DOCS / "index.md").read_text(), re.DOTALL | re.MULTILINE
    )
    named = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    pages = {
        page.relative_to(DOCS).with_suffix("").as_posix()
        for page in [*DOCS.rglob("*.md"), *DOCS.rglob("*.rst")]
    }
    assert sorted(named) == sorted(pages - {"index"})
