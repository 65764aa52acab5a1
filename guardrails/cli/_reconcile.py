"""Compares a fleet's reports with its database server, for the commands that do.

Depends on `guardrails.diagnosis.fleets`, which judges, and on the stores of fleets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

from guardrails.cli._missing import missing
from guardrails.diagnosis.findings import Facts, Finding
from guardrails.errors import ConfigurationError

if TYPE_CHECKING:
    from guardrails.fleet._stores import Store
    from guardrails.fleet._uses import BudgetUse

__all__ = ["budget_against_server", "open_store", "options"]

_BAD_URL = "--database-url must be the URL of a server, such as postgresql://user@host/name"


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say which sessions of the server should be the fleet's."""
    for option in (
        click.option(
            "--application", metavar="NAME", help="Counts the sessions with this application name only."
        ),
        click.option(
            "--role", metavar="NAME", help="The role of the service; without it that of the database's URL."
        ),
        click.option("--budget", metavar="NAME", help="The budget of that server, if there are several."),
    ):
        command = option(command)
    return command


def open_store(url: str) -> Store:
    """Returns the store of a fleet, which is closed when the command ends.

    Raises:
        UsageError: The URL is wrong, or redis-py is not installed.
    """
    from guardrails.fleet._fleet import store_of  # noqa: PLC0415 - slow to import

    try:
        store = store_of(url, "")()
    except (ConfigurationError, ImportError) as error:
        raise click.UsageError(str(error).removeprefix("Fleet: ")) from None
    click.get_current_context().call_on_close(store.close)
    return store


def budget_against_server(
    store: Store,
    database_url: str,
    *,
    fleet: str | None = None,
    budget: str | None = None,
    role: str | None = None,
    application: str | None = None,
) -> list[Finding]:
    """Returns the difference between what a budget's workers report and what the server counts.

    Args:
        store: The fleet's store.
        database_url: The server.
        fleet: The name of the fleet; None is the only one.
        budget: The name of the budget; None is the only one.
        role: The role of the service; None is that of the URL.
        application: Its application name; None is any.

    Raises:
        UsageError: The URL is wrong, or there are several budgets.
    """
    try:
        from guardrails.diagnosis.databases import answer, ask  # noqa: PLC0415 - of an extra
        from guardrails.diagnosis.fleets import Whose, reconcile  # noqa: PLC0415 - with it
    except ImportError:
        missing("sqlalchemy")

    def report() -> BudgetUse:
        return _use(store, fleet, budget)

    def facts() -> Facts | Finding:
        return answer(database_url, ask)[1]

    try:
        answer(database_url, lambda _: None)  # a wrong URL is an error, whatever the store has
        return reconcile(Whose(role, application), report, facts)
    except _UncomparedError as error:
        return [error.finding]
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
    except ValueError:
        raise click.UsageError(_BAD_URL) from None


def _use(store: Store, fleet: str | None, budget: str | None) -> BudgetUse:
    """What the workers of a budget report."""
    from guardrails.fleet._stores import StoreError  # noqa: PLC0415 - slow to import
    from guardrails.fleet._uses import uses  # noqa: PLC0415 - likewise

    try:
        known = list(uses(store.read()))
    except StoreError as error:
        raise _UncomparedError(
            f"the fleet's store cannot be read: {error}", "is it running, and in reach?"
        ) from None
    found = [each for each in known if fleet in {None, each.fleet} and budget in {None, each.name}]
    if len(found) > 1:
        options = "--name" if len({each.name for each in found}) == 1 else "--budget"
        raise click.UsageError(f"say which budget is that of the server, with {options}: {_names(found)}")
    if not found:
        of_budget = "any budget" if budget is None else f"the budget {budget!a}"
        of_fleet = "" if fleet is None else f" of the fleet {fleet!a}"
        raise _UncomparedError(
            f"no worker reports {of_budget}{of_fleet}: nothing was compared",
            f"are the store and the names right, and do workers run? Reported are: {_names(known) or 'none'}",
        )
    return found[0]


def _names(budgets: Iterable[BudgetUse]) -> str:
    return ", ".join(f"{each.name!a} of {each.fleet!a}" for each in budgets)


class _UncomparedError(Exception):
    """Nothing can be compared. The finding says why."""

    def __init__(self, why: str, advice: str) -> None:
        super().__init__(why)
        self.finding = Finding("fleet", why, (), advice)
