"""``guardrails demo``: reads the arguments, performs a run, writes its files and exits.

Depends on `guardrails.demo`, which performs the run; must not import it before the command is run.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from guardrails._core.shadow import MODES
from guardrails.cli.shadow import words
from guardrails.demo.scenarios import SCENARIOS

if TYPE_CHECKING:
    from guardrails.demo.conduct import Options
    from guardrails.demo.records import Run

__all__ = ["demo"]

_LONGEST = 600
_NOT_VALID = 3
"""Exit code of a run whose figures are not valid, because the machine disturbed it."""


class _Output(click.Path):
    """A file that can be written; checked before the run starts, written at its end."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True, path_type=Path)

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if not path.exists() and not (path.parent.is_dir() and os.access(path.parent, os.W_OK | os.X_OK)):
            self.fail(f"{path} cannot be written: its directory is missing or read-only", param, ctx)
        return path


@click.command(
    short_help="Runs one app twice, plain and guarded, through a fault.",
    help="Runs one app twice, plain and guarded, through a fault, and shows what becomes of each.",
)
@click.option(
    "--scenario",
    type=click.Choice(list(SCENARIOS)),
    default="lock",
    show_default=True,
    help="The fault.",
)
@click.option(
    "--seconds",
    type=click.IntRange(20, _LONGEST),
    default=60,
    show_default=True,
    help="Time in which users arrive.",
)
@click.option(
    "--compartments",
    type=click.Choice(["declared", "auto", "none"]),
    default="declared",
    show_default=True,
    help="How the guarded app keeps its endpoints apart.",
)
@click.option(
    "--mode",
    type=click.Choice(MODES),
    default="enforce",
    show_default=True,
    help="The mode of the guarded app's guards; in shadow they watch, and the end says what they would do.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed sends the same users.")
@click.option("--headless", is_flag=True, help="Lines instead of the live table.")
@click.option("--report", type=_Output(), metavar="FILE.html", help="Writes one self-contained page.")
@click.option("--json", "json_file", type=_Output(), metavar="FILE.json", help="Writes the figures.")
@click.option(
    "--database-url",
    metavar="URL",
    help="Your own PostgreSQL instead of a private one; a schema is created there and dropped.",
)
def demo(
    *, scenario: str, headless: bool, report: Path | None, json_file: Path | None, **settings: Any
) -> None:
    """Runs the command."""
    try:
        from guardrails.demo import conduct  # noqa: PLC0415 - needs the demo extra
    except ImportError as error:
        _exit_with(_missing(error))
    options = conduct.Options(scenario=SCENARIOS[scenario], **settings)
    try:
        if options.database_url is not None:
            conduct.async_url(options.database_url)
        run = _perform(options, live=sys.stdout.isatty() and not headless)
        sums = _write(run, report, json_file)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--database-url") from None
    except ImportError as error:
        _exit_with(_missing(error))
    except conduct.InterruptedRunError as error:
        _exit_with(f"{error}; everything that was started has been stopped", 128 + error.signum)
    except (conduct.UnreachableError, conduct.ServerError, conduct.StageError) as error:
        _exit_with(str(error))
    except OSError as error:
        _exit_with(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "))
    if headless and sums["check"]["valid"] is False:
        sys.exit(_NOT_VALID)


def _perform(options: Options, *, live: bool) -> Run:
    from guardrails.demo import conduct, terminal, twin  # noqa: PLC0415 - as above

    with conduct.Interrupts() as interrupts:
        difference = twin.difference(options.compartments)
        for line in terminal.opening(options.scenario, difference, options.mode):
            click.echo(line)
        if not live:
            return conduct.perform(options, terminal.PlainLines(click.echo), interrupts)
        from rich.console import Console  # noqa: PLC0415 - a pipe needs no rich

        with terminal.LiveTable(Console()).open() as table:
            return conduct.perform(options, table, interrupts)


def _write(run: Run, report: Path | None, json_file: Path | None) -> dict[str, Any]:
    from guardrails.demo import figures, terminal  # noqa: PLC0415 - as above
    from guardrails.demo.report import page  # noqa: PLC0415

    sums = figures.figures(run)
    watched = words(sums["watched"])
    click.echo()
    for line in (*terminal.validity_lines(sums), *terminal.scorecard_lines(sums)):
        click.echo(line)
    if watched:
        click.echo("\nWhat enforcing would have done, as the guarded app has counted it:")
        for line in watched:
            click.echo(line)
    click.echo()
    for line in terminal.closing_lines(sums):
        click.echo(line)
    if json_file is not None:
        json_file.write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")
        click.echo(f"figures: {json_file}")
    if report is not None:
        report.write_text(page(run, sums, watched), encoding="utf-8")
        click.echo(f"report:  {report}")
    return sums


def _missing(error: ImportError) -> str:
    if "pip install" in str(error):
        return str(error)
    if error.name is None or error.name.partition(".")[0] == "guardrails":
        raise error  # a fault of the library must not be reported as a missing package
    return f"the demo needs {error.name}; install it with: pip install 'guardrails-db[demo]'"


def _exit_with(message: str, code: int = 1) -> NoReturn:
    click.echo(f"guardrails demo: {message}", err=True)
    sys.exit(code)
