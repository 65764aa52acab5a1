"""``guardrails simulate``: what a guard would have done with a trace, and whether a fleet keeps its budget.

Depends on the simulation, which is imported when it runs.
"""

from __future__ import annotations

import json

import click

from guardrails.cli._options import as_json
from guardrails.cli._replay_table import replay_data, replay_lines, trace_data
from guardrails.errors import ConfigurationError

__all__ = ["simulate"]


@click.command(
    short_help="Replays a trace through a guard, or runs a fleet in virtual time.",
    help="With TRACE, a CSV file of calls: what a guard with other settings would have done with them. "
    "With --workers: whether so many workers would keep a fleet's budget under faults.",
)
@click.argument("trace", required=False)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar="FILE.toml|SETTINGS",
    help="A guard's settings: a TOML file, or slots=10,timeout=2. Given more than once, they are compared.",
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="NAME=VALUE",
    help="A setting of every policy, such as breaker.minimum_number_of_calls=5.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed gives the same result.")
@as_json
def simulate(
    *, trace: str | None, policies: tuple[str, ...], changes: tuple[str, ...], seed: int, as_json: bool
) -> None:
    """Runs the command."""
    if trace is None:
        raise click.UsageError("give a TRACE, or --workers")
    _replay(trace, policies, changes, seed, as_json=as_json)


def _replay(
    path: str, policies: tuple[str, ...], changes: tuple[str, ...], seed: int, *, as_json: bool
) -> None:
    from guardrails.simulation.replay import replay  # noqa: PLC0415 - imports guards
    from guardrails.simulation.settings import read_policies  # noqa: PLC0415
    from guardrails.simulation.trace import read_trace  # noqa: PLC0415

    try:
        rules = read_policies(policies, changes)
        trace = read_trace(path)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from None
    except OSError as error:
        raise click.UsageError(f"the trace cannot be read: {error.strerror or error}") from None
    replays = [replay(trace, each, seed=seed) for each in rules]
    if as_json:
        click.echo(
            json.dumps({"trace": trace_data(trace), "policies": [replay_data(each) for each in replays]})
        )
    else:
        click.echo("\n".join(replay_lines(trace, replays)))
