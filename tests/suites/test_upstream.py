"""The judge of the suites' outcomes."""

from __future__ import annotations

from support import upstream

BARE = {"a": "passed", "b": "passed", "c": "failure"}


def test_another_outcome_is_a_difference():
    """A failure, and a test that only one of the runs has."""
    guarded = {"a": "failure", "c": "failure", "d": "passed"}
    assert upstream.differences(BARE, guarded, {}) == [
        "a: passed bare, failure guarded",
        "b: passed bare, not run guarded",
        "d: not run bare, passed guarded",
    ]


def test_a_difference_that_is_meant_is_none():
    """By its name or by a pattern."""
    guarded = BARE | {"a": "failure", "b": "error"}
    assert upstream.differences(BARE, guarded, {"[ab]": "reason"}) == []


def test_a_meant_difference_that_does_not_show_is_reported():
    """A test that was not selected is no reason to report anything."""
    assert upstream.differences(BARE, BARE, {"a": "reason", "elsewhere": "reason"}) == [
        "a: meant to differ, and does not"
    ]


def test_pytests_outcomes_are_read_by_test(tmp_path):
    """JUnit XML as pytest writes it."""
    cases = '<testcase classname="m" name="a"/><testcase classname="m" name="b"><error/></testcase>'
    (tmp_path / "report.xml").write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    assert upstream.read_junit(tmp_path / "report.xml", "") == {"m::a": "passed", "m::b": "error"}
