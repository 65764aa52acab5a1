"""The project's tests; each would do harm in any database but the test runner's own."""

from __future__ import annotations

import threading

from django.db import connections
from django.test import TestCase, TransactionTestCase

from shop.models import Item

ALIASES = set(connections)


def database(connection):
    """The name of the database that a connection leads to."""
    with connection.cursor() as cursor:
        cursor.execute("select database()" if connection.vendor == "mysql" else "select current_database()")
        return cursor.fetchone()[0]


class Checks:
    """What holds in a database made for tests."""

    databases = ALIASES

    def test_every_alias_leads_to_a_test_database(self):
        for alias in ALIASES:
            name = database(connections[alias])
            assert name.startswith("test_"), name
            assert name == connections[alias].settings_dict["NAME"]

    def test_items_can_be_written_and_are_gone_in_the_next_test(self):
        for alias in ALIASES:
            assert not Item.objects.using(alias).exists()
            Item.objects.using(alias).create(name="of a test")

    def test_the_same_again(self):
        self.test_items_can_be_written_and_are_gone_in_the_next_test()

    def test_copies_and_other_threads_lead_there_too(self):
        found = []

        def ask():
            for alias in ALIASES:
                found.append(database(connections[alias]))
                connections[alias].close()

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        for alias in ALIASES:
            copy = connections[alias].copy()
            found.append(database(copy))
            copy.close()
        assert all(name.startswith("test_") for name in found), found
        assert len(found) == 2 * len(ALIASES)


class InTransactions(Checks, TestCase):
    """Each test is rolled back."""


class Emptied(Checks, TransactionTestCase):
    """Each test's tables are emptied."""


class EmptiedToo(Checks, TransactionTestCase):
    """For the second process."""
