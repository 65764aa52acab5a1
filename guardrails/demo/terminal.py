"""Shows the demo on a terminal: as a live table, or as plain lines where the output is no terminal.

Depends on the frames and figures, which it formats; must not compute them.
"""

from __future__ import annotations

from contextlib import contextmanager
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from guardrails.demo.frames import Frame, frame
from guardrails.demo.scenarios import MAINS, POOL_CAPACITY, Scenario

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import Console, RenderableType

    from guardrails._core.shadow import Mode
    from guardrails.demo.records import Run

__all__ = [
    "LiveTable",
    "PlainLines",
    "closing_lines",
    "opening",
    "scorecard",
    "scorecard_lines",
    "validity_lines",
    "verdict",
]

_BAR = 20
_HISTORY = 16
_WIDTH = 79
"""Characters of a line on a terminal of 80 columns."""


def opening(scenario: Scenario, difference: Sequence[tuple[bool, str]], mode: Mode = "enforce") -> list[str]:
    """Returns the lines before the start: the scenario, and the lines of code that make the difference."""
    variable = [] if mode == "enforce" else [f"and in its environment GUARDRAILS_MODE={mode}."]
    return [
        f"guardrails demo: {scenario.title}",
        *wrap(scenario.caption, _WIDTH),
        "The same app twice. All that the guarded one has more:",
        *(f"    {'+' if added else ' '} {line}" for added, line in difference),
        *variable,
    ]


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds:.2f} s"  # noqa: PLR2004 - reads better


def _caption(run: Run, now: float) -> str:
    phase = run.phase(now)
    if now > run.seconds:
        return "no more users; waiting for the last answers"
    if phase == "healthy":
        return f"healthy; the fault begins in {run.fault_starts - now:.0f} s"
    if phase == "fault":
        return f"FAULT, {run.fault_ends - now:.0f} s to go"
    return f"the fault has been over for {now - run.fault_ends:.0f} s"


def _cause_lines(run: Run, now: float) -> list[str]:
    """Returns the cause that the guarded app has found, with the time; no line if there is none."""
    if run.guarded.cause is None:
        return []
    return wrap(f"-- after {now:.0f} s the guarded app names the cause: {run.guarded.cause}", _WIDTH)


class PlainLines:
    """Writes one line a second, for pipes, logs and ``--headless``."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._cause: list[str] = []
        self._next = 0.0
        self._phase = ""

    def say(self, line: str) -> None:
        """Writes one line before or after the load."""
        self._write(line)

    def show(self, run: Run, now: float) -> None:
        """Writes one line if a second has passed since the last, and a heading where a phase begins."""
        if now < self._next:
            return
        self._next = now + 0.9
        if not self._cause:
            self._cause = _cause_lines(run, now)
            for line in self._cause:
                self._write(line)
        phase = "end" if now > run.seconds else run.phase(now)
        if phase != self._phase:
            self._phase = phase
            self._write(f"-- {_caption(run, now)}")
            self._write(f"{'':8s}{' plain '.center(_SIDE, '-')} {' guarded '.center(_SIDE, '-')}")
            self._write(f"{'':8s}{_HEADINGS} {_HEADINGS} circuit")
        plain, guarded = (frame(run, twin, now) for twin in run.twins)
        circuit = "pool open" if guarded.pool_is_open else (guarded.state or "-")
        self._write(f"{now:5.0f} s {_side(plain)} {_side(guarded)} {circuit[:_STATE]}")


_HEADINGS = f"{'ok/s':>5s}{'refused':>8s}{'lost':>5s}{'pool':>11s}"
_SIDE = len(_HEADINGS)
_STATE = 12


def _side(now: Frame) -> str:
    return (
        f"{now.good:5d}{now.refused:8d}{now.lost:5d}{f'{now.checked_out}/{POOL_CAPACITY}+{now.waiting}':>11s}"
    )


class LiveTable:
    """Draws both twins side by side twice a second, with the last seconds below.

    Args:
        console: The console to draw on.
    """

    def __init__(self, console: Console) -> None:
        from rich.live import Live  # noqa: PLC0415 - a pipe needs no rich

        self._console = console
        # Without auto-refresh: its thread would draw while clients wait.
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._history: list[tuple[float, Frame, Frame]] = []
        self._cause: list[str] = []

    @contextmanager
    def open(self) -> Iterator[LiveTable]:
        """Shows the table during the block; the earlier content of the screen stays."""
        with self._live:
            yield self

    def say(self, line: str) -> None:
        """Writes one line above the table."""
        self._console.print(line, style="dim", highlight=False, markup=False)

    def show(self, run: Run, now: float) -> None:
        """Draws the table."""
        plain, guarded = (frame(run, twin, now) for twin in run.twins)
        self._cause = self._cause or _cause_lines(run, now)
        if not self._history or int(now) != int(self._history[-1][0]):
            self._history = [*self._history[-_HISTORY + 1 :], (now, plain, guarded)]
        self._live.update(self._draw(run, now, plain, guarded), refresh=True)

    def _draw(self, run: Run, now: float, plain: Frame, guarded: Frame) -> RenderableType:
        from rich.console import Group  # noqa: PLC0415 - as above
        from rich.panel import Panel  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        offered = sum(now - 1.0 <= user.at < now and user.path in MAINS for user in run.arrivals)
        sides = Table.grid(expand=True, padding=(0, 1))
        sides.add_column(ratio=1)
        sides.add_column(ratio=1)
        sides.add_row(
            Panel(_card(plain), title="plain", border_style=_colour(plain, offered)),
            Panel(_card(guarded), title="guarded", border_style=_colour(guarded, offered)),
        )
        history = Table(box=None, padding=(0, 2), header_style="dim")
        for heading in ("t", "plain ok/s", "guarded ok/s", "guarded refused"):
            history.add_column(heading, no_wrap=True)
        longest = max(
            4, min(_BAR, (self._console.width - 44) // 2)
        )  # besides the bars a line has 44 characters
        most = max(1, *(max(one.good, other.good) for _, one, other in self._history))
        for at, one, other in self._history:
            refused = f"{other.refused:3d} in {_ms(other.refused_seconds)}" if other.refused else "-"
            history.add_row(
                f"{at:3.0f}", _bar(one.good, most, longest), _bar(other.good, most, longest), refused
            )
        heading = f"[b]{now:4.0f} s[/b] of {run.seconds}   {offered} users/s arriving   {_caption(run, now)}"
        return Group(heading, sides, history, Text("\n".join(self._cause)))


def _card(now: Frame) -> RenderableType:
    from rich.table import Table  # noqa: PLC0415

    card = Table.grid(padding=(0, 2))
    used = "#" * now.checked_out + "-" * (POOL_CAPACITY - now.checked_out)
    card.add_row("good", f"[b]{now.good}[/b] /s   {_ms(now.good_seconds)}")
    card.add_row("refused", f"{now.refused} /s   {_ms(now.refused_seconds)}")
    card.add_row("lost", f"{now.lost} /s   (2 s, or a 500)")
    card.add_row("pool", f"{used} {now.checked_out}/{POOL_CAPACITY} +{now.waiting}")
    card.add_row("circuit", now.state or "-")
    return card


def _colour(now: Frame, offered: int) -> str:
    if now.good >= 0.8 * offered:
        return "green"
    return "red" if now.lost > now.good else "yellow"


def _bar(value: int, most: int, longest: int) -> str:
    return f"{value:4d} {'█' * round(longest * value / most)}"


def scorecard(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Returns the rows of the scorecard: figure, plain, guarded."""
    plain, guarded = figures["plain"], figures["guarded"]

    def row(what: str, read: Callable[[dict[str, Any]], str]) -> tuple[str, str, str]:
        return what, read(plain), read(guarded)

    return [
        row("users served: healthy", lambda twin: _percent(twin["users_ok_ratio"]["healthy"])),
        row("users served: during the fault", lambda twin: _percent(twin["users_ok_ratio"]["fault"])),
        row("users served: after the fault", lambda twin: _percent(twin["users_ok_ratio"]["recovery"])),
        row("good again after the fault", lambda twin: _after(twin["recovered_after_s"])),
        row("answer during the fault, p50", lambda twin: _figure(twin["answer_p50_ms"]["fault"], "ms")),
        row("answer during the fault, p99", lambda twin: _figure(twin["answer_p99_ms"]["fault"], "ms")),
        row("seconds without a good answer", lambda twin: _figure(twin["seconds_without_good"])),
        row("refusals (503 + Retry-After)", lambda twin: _figure(twin["rejections"]["count"])),
        row("a refusal takes, p50", lambda twin: _figure(twin["rejections"]["p50_ms"], "ms")),
        row("first refusal after", lambda twin: _figure(twin["first_shed_after_s"], "s")),
        row("other table served in the fault", lambda twin: _percent(twin["bystander_ok_ratio"]["fault"])),
        row("other table in the fault, p99", lambda twin: _figure(twin["bystander_p99_ms"]["fault"], "ms")),
        row("no database in the fault, p99", lambda twin: _figure(twin["nodb_p99_ms"]["fault"], "ms")),
        row("most requests inside the app", lambda twin: _figure(twin["max_in_flight"])),
        row("most connections checked out", lambda twin: _figure(twin["max_checked_out"])),
        row("queries still running 1 s after", lambda twin: _figure(twin["queries_left_running"])),
    ]


def scorecard_lines(figures: dict[str, Any]) -> list[str]:
    """Returns the scorecard as plain text."""
    rows = [("", "plain", "guarded"), *scorecard(figures)]
    return [f"{what:34s}{plain:>12s}{guarded:>12s}" for what, plain, guarded in rows]


def validity_lines(figures: dict[str, Any]) -> list[str]:
    """Returns the lines above the scorecard if its figures are not valid."""
    why = figures["check"]["disturbed_by"]
    return [*wrap(f"THESE FIGURES ARE NOT VALID: {'; '.join(why)}.", _WIDTH), ""] if why else []


def closing_lines(figures: dict[str, Any]) -> list[str]:
    """Returns the verdict in a sentence, and the next step."""
    return [*wrap(verdict(figures), _WIDTH), *wrap(_next_step(figures), _WIDTH)]


def verdict(figures: dict[str, Any]) -> str:
    """Returns the conclusion from the figures."""
    plain, guarded = figures["plain"], figures["guarded"]
    if figures["mode"] != "enforce":
        fault = [_percent(twin["users_ok_ratio"]["fault"]) for twin in (plain, guarded)]
        return (
            f"With its guards {_WATCHING[figures['mode']]} the guarded app refused"
            f" {guarded['rejections']['count']} requests; during the fault it served {fault[1]} of its users,"
            f" the plain one {fault[0]}."
        )
    if figures["scenario"] == "redis-freeze":
        silent = [_figure(twin["seconds_without_good"]) for twin in (plain, guarded)]
        slowest = [_figure(twin["answer_p99_ms"]["fault"], "ms") for twin in (plain, guarded)]
        return (
            f"From the freeze on the plain app spent {silent[0]} seconds without one good answer, the guarded"
            f" one {silent[1]}; the slowest of a hundred took {slowest[0]} plain, {slowest[1]} guarded."
        )
    after = [_percent(twin["users_ok_ratio"]["recovery"]) for twin in (plain, guarded)]
    other = [_percent(twin["bystander_ok_ratio"]["fault"]) for twin in (plain, guarded)]
    return (
        f"Once the fault was over the guarded app served {after[1]} of its users, the plain one {after[0]};"
        f" during it, {other[1]} and {other[0]} of those who came for another table."
    )


_WATCHING = {"shadow": "in shadow", "off": "off"}


def _next_step(figures: dict[str, Any]) -> str:
    if figures["check"]["valid"] is False:
        return "Run it again when nothing else runs here: what was measured is the machine."
    if figures["mode"] != "enforce":
        return "Next: the same with --mode enforce."
    return (
        "Next: protect(engine) and the middleware in your own application, then"
        " guardrails doctor --app MODULE:ATTR."
    )


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * ratio:.1f} %"


def _figure(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:.4g} {unit}".rstrip()


def _after(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.0f} s"
