"""Values in texts: what is read as a number or a truth, and what stays a text, for a check to refuse."""

from __future__ import annotations

import pytest

from guardrails._util.texts import read_flag, read_number, with_article


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        (" 2.5 ", 2.5),
        ("-1", -1),
        ("1e3", 1000.0),
        ("none", None),
        (" None", None),
        ("5s", "5s"),
        ("", ""),
    ],
)
def test_a_number_is_read_and_all_else_stays_a_text(text, value):
    found = read_number(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((word, True) for word in ("1", "true", "yes", "on", " True ", "ON")),
        *((word, False) for word in ("0", "false", "no", "off", "False", " No")),
        *((word, word) for word in ("2", "", " maybe ", "none")),
    ],
)
def test_a_flag_is_read_and_all_else_stays_a_text(text, value):
    found = read_flag(text)
    assert (found, type(found)) == (value, type(value))


def test_the_name_of_a_class_has_its_article():
    assert with_article("Engine") == "an Engine"
    assert with_article("async_sessionmaker") == "an async_sessionmaker"
    assert with_article("QueuePool") == "a QueuePool"
