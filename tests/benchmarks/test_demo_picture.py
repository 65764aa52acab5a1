"""The picture and the table of the README are those of the run in docs/demo.json, and that run is valid."""

from __future__ import annotations

import json

import demo_picture
import pytest

from support.paths import DOCS

FIGURES = json.loads((DOCS / "demo.json").read_text())


def test_the_run_is_valid_and_is_of_the_three_lines_alone():
    """Nothing else ran on the machine, and no compartment was declared: only protect and the middleware."""
    assert FIGURES["check"]["valid"]
    assert (FIGURES["scenario"], FIGURES["compartments"], FIGURES["seconds"]) == ("lock", "auto", 60)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_picture_is_that_of_the_run(scheme):
    """Made again it is the same file."""
    assert (DOCS / f"demo-{scheme}.svg").read_text() == demo_picture.picture(FIGURES, scheme)


@pytest.mark.parametrize("page", demo_picture.PAGES, ids=lambda page: page.name)
def test_the_table_is_that_of_the_run(page):
    """In the README and on the first page of the site."""
    text = page.read_text()
    assert demo_picture.table(FIGURES) in text
    assert demo_picture.filled(text, FIGURES) == text
