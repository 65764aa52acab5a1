"""Errors of usage of the command line: they name the option, and do not repeat what may be a secret."""

from __future__ import annotations

import sys

import pytest

from guardrails.cli import main

LONG = "hunter2-" * 12
URL = "postgresql://app:hunter2@db.internal/shop"


@pytest.mark.parametrize("value", [LONG, URL])
@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["size", "--rate", "1", "--hold", "1", "--workers", "{}"], "--workers"),
        (["size", "--hold", "1", "--rate={}"], "--rate"),
        (["diagnose", "--slow", "{}"], "--slow"),
        (["diagnose", "redis://localhost", "{}"], "unexpected extra argument"),
        (["doctor", "--app", "{}"], "--app"),
        (["doctor", "--app", "{}:app"], "--app"),
        (["doctor", "--workers", "0", "--app", "{}"], "workers"),
        (["{}"], "No such command"),
        (["size", "--{}"], "No such option"),
    ],
)
def test_a_wrong_argument_is_shown_in_part_and_an_address_not_at_all(
    monkeypatch, capsys, words, named, value
):
    """Exit code 2, which is that of a wrong usage."""
    monkeypatch.setattr(sys, "argv", ["guardrails", *(word.format(value) for word in words)])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as ended:
        main()
    out = "".join(capsys.readouterr())
    assert ended.value.code == 2
    assert named in out
    assert out.count("hunter2") <= (5 if value is LONG else 0)
    assert "internal" not in out
