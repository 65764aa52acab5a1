"""Django's test runner, which also writes down how each test ended."""

from __future__ import annotations

import json
import os
import pathlib
import unittest

from django.test.runner import DiscoverRunner


class Result(unittest.TextTestResult):
    """Writes a line for each test when it ends."""

    def startTest(self, test):
        super().startTest(test)
        self.outcome = "passed"

    def stopTest(self, test):
        super().stopTest(test)
        self.write(test.id(), self.outcome)

    def write(self, name, outcome):
        with pathlib.Path(os.environ["SUITE_OUTCOMES"]).open("a") as file:
            file.write(json.dumps([name, outcome]) + "\n")

    def addError(self, test, error):
        super().addError(test, error)
        self.note(test, error, "error")

    def addFailure(self, test, error):
        super().addFailure(test, error)
        self.note(test, error, "failure")

    def addSubTest(self, test, subtest, error):
        super().addSubTest(test, subtest, error)
        if error is not None:
            self.note(test, error, "failure")

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.outcome = "skipped"

    def addExpectedFailure(self, test, error):
        super().addExpectedFailure(test, error)
        self.outcome = "expected failure"

    def addUnexpectedSuccess(self, test):
        super().addUnexpectedSuccess(test)
        self.outcome = "unexpected success"

    def note(self, test, error, outcome):
        self.outcome = outcome
        if isinstance(test, unittest.suite._ErrorHolder):  # setUpClass and the like
            self.write(test.id(), outcome)


class Runner(DiscoverRunner):
    """See Django."""

    def get_resultclass(self):
        return Result
