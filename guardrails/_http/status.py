"""Makes the pages of probes and status. Depends on the figures of guards; must not ask a database."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Sequence
from dataclasses import fields
from operator import itemgetter
from typing import NamedTuple

from guardrails._guard.compartments import judged_guards, shown_compartments
from guardrails._guard.environment import unused_variables
from guardrails._guard.guard import Guard, attachment_of, recent_events, snapshot_of
from guardrails._guard.shadow_report import shadow_report
from guardrails._guard.snapshot import GuardSnapshot
from guardrails._http.answers import as_json
from guardrails._http.history import History
from guardrails._http.settings import StatusSettings

__all__ = ["HEADERS", "Page", "Probes", "as_page", "figures"]

_log = logging.getLogger("guardrails")

HEADERS = (
    ("content-type", "application/json"),
    ("cache-control", "no-store"),
    ("x-content-type-options", "nosniff"),
)

_EVENTS = 50
"""Events on the page, the last ones of all guards."""

_SICK = {"open", "half_open", "forced_open"}
_RECOVERY_DIVISOR = 3
"""A stuck guard is well again after it had a free slot for ``stuck_after`` divided by this. Otherwise a
slow pool would take its process in and out of service with every probe."""


class Page(NamedTuple):
    """A status, a body and the headers; without others those of JSON."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = HEADERS


class Probes:
    """Liveness, readiness and status of one process.

    Args:
        settings: The guards, ``stuck_after`` and the clock.

    Attributes:
        guards: The guards, checked.
        pages: The functions that make the pages, by path.
    """

    def __init__(self, settings: StatusSettings) -> None:
        self.guards = settings.guards
        self.pages = {
            "/livez": self.live,
            "/readyz": self.ready,
            "/status.json": self.status,
            "/history.json": self.history,
        }
        self._history = History(settings.guards)
        self._clock = settings.clock
        self._stuck_after = settings.stuck_after
        self._watches: dict[Guard, _Watch] = {}
        self._texts: dict[tuple[Guard, str], tuple[GuardSnapshot, str]] = {}
        self._draining = False
        self._reported: list[str] = []
        self._lock = threading.Lock()  # under WSGI two probes may be here at once

    def drain(self) -> None:
        """Makes the process unready from now on, because it is about to stop."""
        self._draining = True

    def live(self) -> Page:
        """Returns 200: the process answers. Checks nothing."""
        return Page(200, as_page({"live": True}))

    def ready(self) -> Page:
        """Returns 200 if this process should get requests, else 503 with the reasons."""
        self._history.start()
        reasons = self._reasons({guard: snapshot_of(guard) for guard in self.guards})
        return Page(503 if reasons else 200, as_page({"ready": not reasons, "reasons": reasons}))

    def status(self) -> Page:
        """Returns the figures of every guard."""
        self._history.start()
        seen = {guard: snapshot_of(guard) for guard in self.guards}
        reasons = self._reasons(seen)
        guards = ",".join(self._text(guard, figures, "\n    ") for guard, figures in seen.items())
        events = sorted(
            (event for guard in self.guards for event in recent_events(guard)), key=itemgetter("at")
        )
        shown = {
            "ready": not reasons,
            "reasons": reasons,
            **_process(),
            "unused_variables": unused_variables(),
        }
        head = as_json(shown, between=",\n  ").decode()
        late = f'"events": {_lines(events[-_EVENTS:])}'
        return Page(200, f'{{\n  {head[1:-1]},\n  {late},\n  "guards": [{guards}\n  ]\n}}\n'.encode())

    def history(self) -> Page:
        """Returns the last two minutes of the guards, for a page that was opened late."""
        self._history.start()
        return Page(200, as_json(_process() | self._history.fields()) + b"\n")

    def _text(self, guard: Guard, seen: GuardSnapshot, line: str) -> str:
        """Returns one guard as JSON, a figure on each line. The text of unchanged figures is kept."""
        below = line + "    "
        pool = _pool_text(guard, line)
        parts = ",".join(self._text(part, snapshot_of(part), below) for part in shown_compartments(guard))
        before, text = self._texts.get((guard, line), (None, ""))
        if before != seen:
            text = as_json(_fields(seen), between=f",{line}  ").decode()[1:-1]
            self._texts[guard, line] = seen, text
        pool += _shadow_text(guard, line)
        return f'{line}{{{line}  {text},{pool}{line}  "compartments": [{parts}]{line}}}'

    def _reasons(self, seen: dict[Guard, GuardSnapshot]) -> list[str]:
        with self._lock:
            now = self._clock()
            # The servers of a cluster come and go, and their watches with them.
            judged = {part: guard for guard in seen for part in judged_guards(guard)}
            self._watches = {part: self._watches.get(part) or _Watch(self._stuck_after) for part in judged}
            # A list, not a generator: each watch needs every reading.
            stuck = [
                _shown(guard, part)
                for part, guard in judged.items()
                if self._watches[part].is_stuck(now, seen.get(part) or snapshot_of(part))
            ]
            reasons = ["draining"] * self._draining + [f"stuck: {name}" for name in stuck]
            changed, self._reported = reasons != self._reported, reasons
        if changed:
            _log.warning("readiness: %s", "; ".join(map(ascii, reasons)) or "ready")
        return reasons


def _shown(guard: Guard, part: Guard) -> str:
    """Returns the name of a guard, or that of one of its servers."""
    return guard.name if part is guard else f"{guard.name}/{part.name}"


def _process() -> dict[str, object]:
    """Returns the process that answers: several workers may answer at one address."""
    return {"pid": os.getpid(), "host": socket.gethostname()}


def _shadow_text(guard: Guard, line: str) -> str:
    """Returns the sums of a guard's shadow as JSON; those of a compartment are among its guard's."""
    sums = shadow_report(guard) if len(guard.call_settings.gates) == 1 else None
    return f'{line}  "shadow": null,' if sums is None else f'{line}  "shadow": {as_json(sums).decode()},'


def _pool_text(guard: Guard, line: str) -> str:
    """Returns the cause and the holders of a guard's pool as JSON, a holder on each line.

    A compartment has none of its own.
    """
    gates = guard.call_settings.gates
    page, attachment = gates[0].report.pool_page, attachment_of(guard)
    if attachment is None or len(gates) > 1:
        return f'{line}  "pool": null,'
    text = f'{line}  "pool": {as_json(attachment.figures().summary(), between=f",{line}    ").decode()},'
    if page is None:
        return text
    for name, value in page().items():
        shown = _lines(value, line + "  ") if isinstance(value, list) else as_json(value).decode()
        text += f'{line}  "{name}": {shown},'
    return text


def _lines(items: Sequence[object], line: str = "\n  ") -> str:
    """Returns a list as JSON, an item on each line."""
    shown = ",".join(f"{line}  {as_json(each).decode()}" for each in items)
    return f"[{shown}{line}]" if items else "[]"


def as_page(fields: dict[str, object]) -> bytes:
    """Returns JSON that is easy to read in a terminal."""
    return as_json(fields, indent=2) + b"\n"


def figures(guard: Guard) -> dict[str, object]:
    """Returns the figures of a guard and of the compartments shown with it."""
    seen = guard.snapshot()
    pool = None if seen.pool is None else seen.pool.summary()
    parts = [figures(part) for part in shown_compartments(guard)]
    return _fields(seen) | {"pool": pool, "shadow": shadow_report(guard), "compartments": parts}


_FIELDS = [field.name for field in fields(GuardSnapshot) if field.name != "pool"]


def _fields(seen: GuardSnapshot) -> dict[str, object]:
    return {name: getattr(seen, name) for name in _FIELDS}


class _Watch:
    """Detects that the slots of one guard do not come back.

    A guard is stuck when it is full and no slot was returned for ``stuck_after`` while its circuit is
    closed. An open circuit means that the dependency is at fault, for every process, so it is no reason to
    take this one out of service. If two readings are full and the number of returned slots is the same, the
    guard was full all the time between them. So readings may be as far apart as probes are.
    """

    def __init__(self, stuck_after: float) -> None:
        self._stuck_after = stuck_after
        self._stuck = False
        self._full = False
        self._returned = 0
        self._last_full = 0.0
        self._unchanged_since = 0.0

    def is_stuck(self, now: float, seen: GuardSnapshot) -> bool:
        """Takes one reading; returns True if the guard is stuck."""
        sick = seen.state in _SICK or seen.mode != "enforce"
        full = seen.in_use >= seen.usable_slots and not sick
        returned = seen.admitted - seen.in_use
        unchanged = full and self._full and returned == self._returned
        self._full, self._returned = full, returned
        if full:
            self._last_full = now
        if not unchanged:
            self._unchanged_since = now
        if self._stuck:
            self._stuck = not sick and now - self._last_full < self._stuck_after / _RECOVERY_DIVISOR
        else:
            self._stuck = unchanged and now - self._unchanged_since >= self._stuck_after
        return self._stuck
