"""``guardrails watch``: shows the figures of a running service again and again.

Depends on the reader of ``/status.json``; must not import guards.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import click

from guardrails.cli._interrupts import interruptible
from guardrails.cli._missing import missing
from guardrails.cli._status_page import NOT_A_PAGE, StatusPageError, process_of, read_page, status_address

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["watch"]

_WIDE = 160
"""Characters of a line where the output is no terminal."""

_FEW = 0.05
"""The share of its calls that a healthy guard may refuse, as on the page for browsers."""

_ROOMY = 120
"""Characters of a line that are enough for the table with its borders and a guard's name of usual length."""

_LATELY, _TURNS = 60.0, 20
"""Seconds, and readings, after which a process that has not answered again is forgotten."""

_COLOURS = {"closed": "green", "open": "red", "forced_open": "red", "half_open": "yellow"}


@click.command(
    short_help="Shows the figures of a running service.",
    help="Shows the figures of a running service's guards, from its /status.json.",
)
@click.argument("url")
@click.option(
    "--every",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Interval.",
)
@click.option(
    "--times", type=click.IntRange(1), metavar="N", help="Number of readings; without it until Ctrl-C."
)
@click.option("--json", "as_json", is_flag=True, help="Prints one JSON object a line.")
def watch(*, url: str, every: float, times: int | None, as_json: bool) -> None:
    """Runs the command."""
    address = status_address(url)
    fine = True
    with interruptible(), _Lines() if as_json else _screen() as screen:
        for look in _looks(address, every, times):
            screen.show(look)
            fine = look.fine
    sys.exit(0 if fine else 1)


@dataclass(frozen=True)
class _Row:
    """One guard or compartment on the page.

    Attributes:
        path: Its name, after the names of the guards that contain it.
        state: The state of its circuit.
        busy: Slots taken and slots in all, such as ``"2/15"``.
        waiting: Callers in the queue.
        oldest: Age of the oldest call in seconds, or None.
        totals: Counts since the start of the process, by name.
        mode: The mode of the guard. In another one than ``"enforce"`` its circuit refuses nothing.
    """

    path: str
    state: str
    busy: str
    waiting: int
    oldest: float | None
    totals: Mapping[str, int]
    mode: str = "enforce"


@dataclass(frozen=True)
class _Look:
    """One reading.

    Attributes:
        problem: The reason why there is no page, or None.
        page: The page; empty if there is none.
        rows: The guards and compartments on it.
        rates: By path, the rates per second since the last reading of the same process.
        processes: The number of processes that have answered lately.
    """

    problem: str | None
    page: Mapping[str, Any]
    rows: Sequence[_Row]
    rates: Mapping[str, Mapping[str, float]]
    processes: int = 1

    @property
    def fine(self) -> bool:
        """True if the service answers, is ready, and has no open circuit."""
        is_open = any(row.state in {"open", "forced_open"} for row in self.rows)
        return self.problem is None and bool(self.page["ready"]) and not is_open

    def refuses(self, row: _Row) -> bool:
        """True if a guard refuses more than a few of its calls, in any state of its circuit."""
        rates = self.rates.get(row.path, {"in": 0.0, "refused": 0.0})
        return rates["refused"] > _FEW * (rates["in"] + rates["refused"])


def _looks(address: str, every: float, times: int | None) -> Iterator[_Look]:
    known: dict[object, tuple[float, Mapping[str, _Row]]] = {}  # by process: workers share an address
    for number in itertools.count(1):
        page, rows, problem = _read(address)
        now = time.monotonic()
        process = page.get("pid"), page.get("host")
        moment, before = known.pop(process, (now, {}))
        if problem is None:
            known = {each: last for each, last in known.items() if now - last[0] < _LATELY + _TURNS * every}
            known[process] = now, {row.path: row for row in rows}
        yield _Look(problem, page, rows, _rates(before, rows, now - moment), len(known))
        if number == times:
            return
        time.sleep(every)


def _read(address: str) -> tuple[Mapping[str, Any], Sequence[_Row], str | None]:
    try:
        page = read_page(address)
        page = {name: page[name] for name in ("ready", "reasons", "pid", "host", "guards")}
        return page, list(_rows("", page["guards"])), None
    except StatusPageError as error:
        return {}, (), str(error)
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}, (), NOT_A_PAGE


def _rows(above: str, guards: Sequence[Mapping[str, Any]]) -> Iterator[_Row]:
    for guard in guards:
        path, oldest = f"{above}{guard['name']}", guard["oldest_in_flight"]
        refused = _refused(guard) + guard.get("rejected_by_parent", 0)
        totals = {"in": guard["admitted"], "refused": refused}
        totals |= {"failed": guard["failed"], "slow": guard["slow"]}
        yield _Row(
            path=path,
            state=str(guard["state"]),
            busy=_busy(guard),
            waiting=int(guard["waiting"]),
            oldest=None if oldest is None else float(oldest),
            totals={name: int(total) for name, total in totals.items()},
            mode=str(guard.get("mode", "enforce")),
        )
        yield from _rows(path + "/", guard["compartments"])


def _refused(guard: Mapping[str, Any]) -> int:
    """The refusals of a guard and of the compartments in it: each is counted where it happened."""
    own: int = sum(guard["rejected"].values())
    return own + sum(map(_refused, guard["compartments"]))


def _busy(guard: Mapping[str, Any]) -> str:
    """The slots in use and those that may be used, with those that there are if these are more."""
    slots = int(guard["max_concurrent_calls"])
    usable = int(guard.get("usable_slots", slots))
    return f"{int(guard['in_use'])}/{usable}" + (f" of {slots}" if usable < slots else "")


def _rates(
    before: Mapping[str, _Row], rows: Sequence[_Row], seconds: float
) -> Mapping[str, Mapping[str, float]]:
    return {
        # After a restart the process counts from zero.
        row.path: {
            name: max(0, total - before[row.path].totals[name]) / seconds
            for name, total in row.totals.items()
        }
        for row in rows
        if row.path in before and seconds > 0
    }


class _Lines:
    """Prints readings as JSON, one a line."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Does nothing."""

    def show(self, look: _Look) -> None:
        """Shows one reading."""
        about = {"trouble": look.problem, "processes": look.processes, "rates": look.rates}
        print(json.dumps({**about, **look.page}), flush=True)


def _screen() -> _Screen:
    try:
        return _Screen()
    except ImportError:
        missing("cli")


class _Screen:
    """Shows readings: on a terminal in one table that is redrawn, elsewhere one table after the other."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415 - not for JSON
        from rich.live import Live  # noqa: PLC0415 - likewise

        self._console = Console() if sys.stdout.isatty() else Console(width=_WIDE)
        self._live = Live(console=self._console, auto_refresh=False)
        self._redraws = self._console.is_terminal

    def __enter__(self) -> Self:
        if self._redraws:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._redraws:
            self._live.stop()

    def show(self, look: _Look) -> None:
        """Shows one reading."""
        if self._redraws:
            self._live.update(_table(look, self._console.width), refresh=True)
        else:
            self._console.print(_table(look, self._console.width))


def _table(look: _Look, width: int) -> Table:
    from rich.markup import escape  # noqa: PLC0415 - not for JSON
    from rich.table import Table  # noqa: PLC0415 - likewise

    reasons = ", ".join(map(str, look.page.get("reasons", ())))
    title = look.problem or ("ready" if look.page["ready"] else f"not ready: {reasons}")
    process = process_of(look.page)
    if process:
        title += f"; {process}" + (f", one of {look.processes} seen" if look.processes > 1 else "")
    refusing = sum(look.refuses(row) for row in look.rows)
    if refusing:
        title += f", guards that refuse calls: {refusing}"
    well = "yellow" if refusing else "green"
    table = Table(title=escape(_plain(title)), title_style=well if look.fine else "bold red")
    names = ("busy", "waiting", "in/s", "refused/s", "failed/s", "slow/s", "oldest")
    if width < _ROOMY:  # no borders and short names, so that long names are wrapped and no figure is cut
        table.box, table.padding = None, (0, 1, 0, 0)
        names = ("busy", "wait", "in/s", "ref/s", "fail/s", "slow/s", "oldest")
    table.add_column("guard", overflow="fold")
    table.add_column("circuit", no_wrap=True)
    for column in names:
        table.add_column(column, justify="right", no_wrap=True)
    for row in look.rows:
        rates = look.rates.get(row.path, {})
        colour = "yellow" if row.state == "closed" and look.refuses(row) else _COLOURS.get(row.state, "cyan")
        mode = ""
        if row.mode != "enforce":
            colour, mode = "cyan", f" ({row.mode})"
        table.add_row(
            escape(_plain(row.path + mode)),
            f"[{colour}]{escape(_plain(row.state))}[/]",
            row.busy,
            str(row.waiting),
            *(f"{rates[name]:.1f}" if rates else "" for name in ("in", "refused", "failed", "slow")),
            "" if row.oldest is None else f"{row.oldest:.1f} s",
        )
    return table


def _plain(text: str) -> str:
    """Replaces control characters, which could write elsewhere on a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)
