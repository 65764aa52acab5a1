"""``guardrails simulate``: what a guard would have done with a trace, and whether a fleet keeps its budget.

Depends on the simulation, which is imported when it runs.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from guardrails.cli._options import as_json
from guardrails.errors import ConfigurationError

if TYPE_CHECKING:
    from guardrails.simulation.verdict_run import VerdictRun

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
@click.option("--workers", type=int, metavar="N", help="Runs a fleet of so many workers instead.")
@click.option("--budget", type=int, metavar="B", help="With --workers: connections of all together.")
@click.option(
    "--minimum", type=int, default=1, show_default=True, metavar="N", help="With --workers: each one's floor."
)
@click.option(
    "--hours", type=float, default=1.0, show_default=True, metavar="H", help="With --workers: virtual time."
)
@click.option(
    "--faults",
    metavar="LIST",
    default="",
    help="With --workers: all, or some of crash,partition,frozen-store,clock-drift,rolling-deploy,"
    "dying-database.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed gives the same result.")
@click.option(
    "--html",
    type=click.Path(dir_okay=False, writable=True),
    metavar="FILE",
    help="Writes charts, too.",
)
@as_json
def simulate(*, trace: str | None, workers: int | None, as_json: bool, **options: Any) -> None:
    """Runs the command. Exits with 1 if a fleet did not keep its budget."""
    if (trace is None) == (workers is None):
        raise click.UsageError("give a TRACE, or --workers and --budget")
    try:
        if trace is not None:
            _replay(trace, options, as_json=as_json)
        else:
            _run_fleet(workers or 0, options, as_json=as_json)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from None


def _run_fleet(workers: int, options: Mapping[str, Any], *, as_json: bool) -> None:
    from guardrails.cli._fleet_run_table import fleet_data, fleet_lines  # noqa: PLC0415 - with the simulation
    from guardrails.cli._verdict_lines import verdict_data, verdict_lines  # noqa: PLC0415
    from guardrails.simulation.fleet_run import FAULTS, FleetPlan, run_fleet  # noqa: PLC0415 - imports guards
    from guardrails.simulation.page import fleet_page  # noqa: PLC0415

    if options["budget"] is None:
        raise click.UsageError("--workers needs --budget: the connections of all workers together")
    faults = FAULTS if options["faults"] == "all" else tuple(filter(None, options["faults"].split(",")))
    names = ("budget", "minimum", "hours", "seed")
    plan = FleetPlan(workers=workers, faults=faults, **{name: options[name] for name in names})
    with _no_collection():
        run = run_fleet(plan)
    verdicts = _run_verdicts(workers, options["seed"]) if "dying-database" in faults else []
    lines = [*fleet_lines(run), *verdict_lines(verdicts)]
    circuits = [verdict_data(each) for each in verdicts]
    _write(options["html"], lambda: fleet_page(run, lines))
    click.echo(json.dumps(fleet_data(run) | {"dying_database": circuits}) if as_json else "\n".join(lines))
    sys.exit(1 if run.sums.breaks else 0)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Runs without collections of garbage, which take a sixth of the time: a fleet leaves no cycles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _write(path: str | None, page: Callable[[], str]) -> None:
    """Writes a page, if it is wanted."""
    if path is None:
        return
    try:
        Path(path).write_text(page(), encoding="utf-8")
    except OSError as error:
        raise click.UsageError(f"the page cannot be written: {error.strerror or error}") from None


_MOST_JUDGES = 200
"""Most workers in front of a database that fails: each has a real guard and makes each call."""


def _run_verdicts(workers: int, seed: int) -> list[VerdictRun]:
    """Runs workers in front of a database that fails: together, and each for itself."""
    from guardrails.simulation.verdict_run import VerdictPlan, run_verdict  # noqa: PLC0415 - imports guards

    many = min(workers, _MOST_JUDGES)
    return [run_verdict(VerdictPlan(workers=many, together=each, seed=seed)) for each in (True, False)]


def _replay(path: str, options: Mapping[str, Any], *, as_json: bool) -> None:
    from guardrails.cli._replay_table import replay_data, replay_lines, trace_data  # noqa: PLC0415
    from guardrails.simulation.page import replay_page  # noqa: PLC0415
    from guardrails.simulation.replay import replay  # noqa: PLC0415 - imports guards
    from guardrails.simulation.settings import read_policies  # noqa: PLC0415
    from guardrails.simulation.trace import read_trace  # noqa: PLC0415

    rules = read_policies(options["policies"], options["changes"])
    try:
        trace = read_trace(path)
    except OSError as error:
        raise click.UsageError(f"the trace cannot be read: {error.strerror or error}") from None
    replays = [replay(trace, each, seed=options["seed"]) for each in rules]
    lines, data = list(replay_lines(trace, replays)), [replay_data(each) for each in replays]
    _write(options["html"], lambda: replay_page(trace, replays, lines))
    click.echo(json.dumps({"trace": trace_data(trace), "policies": data}) if as_json else "\n".join(lines))
