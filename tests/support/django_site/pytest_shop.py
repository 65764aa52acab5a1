"""The same under pytest-django."""

from __future__ import annotations

import pytest
from shop.tests import ALIASES, Checks

EVERYWHERE = sorted(ALIASES)


def check():
    checks = Checks()
    checks.test_every_alias_leads_to_a_test_database()
    checks.test_items_can_be_written_and_are_gone_in_the_next_test()


@pytest.mark.parametrize("number", range(4))
@pytest.mark.django_db(databases=EVERYWHERE)
def test_items(number):
    check()


@pytest.mark.parametrize("number", range(4))
@pytest.mark.django_db(databases=EVERYWHERE, transaction=True)
def test_items_in_emptied_tables(number):
    check()
