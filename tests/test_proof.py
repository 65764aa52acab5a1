"""The tables of docs/proof.md name tests that are there."""

from __future__ import annotations

import ast
import re

import pytest

from support.paths import DOCS, TESTS

PAGE = DOCS / "proof.md"
CASES = re.findall(r"^\| ([A-Z]+)(\d+) \| [^|]+ \| (`.+`) \|$", PAGE.read_text(), re.MULTILINE)


def names_in(path):
    """What a module defines at its top level, such as its tests."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


@pytest.mark.parametrize(("kind", "number", "tests"), CASES, ids=[kind + number for kind, number, _ in CASES])
def test_a_case_has_a_test(kind, number, tests):
    """Under the name the table gives it, in the file it gives."""
    for named in re.findall(r"`([^`]+)`", tests):
        file, name = named.split("::")
        assert name.lower().startswith("test")
        assert name in names_in(TESTS / file), named


def test_the_list_of_cases_has_no_gap():
    """Each row once, in order; so nobody drops one that has become hard to keep."""
    kinds = list(dict.fromkeys(kind for kind, _, _ in CASES))
    assert kinds == ["SM", "W", "B", "T", "C", "P"]
    for kind in kinds:
        numbers = [int(number) for of, number, _ in CASES if of == kind]
        assert numbers == list(range(1, len(numbers) + 1))
    assert f"| {len(CASES)} rows |" in PAGE.read_text()


def test_files_named_in_the_page_are_there():
    """Also outside the list of cases."""
    for path in re.findall(r"`tests/([\w/.*]+)`", PAGE.read_text()):
        assert list(TESTS.glob(path)), path
