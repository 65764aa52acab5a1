"""The alert rules for Prometheus, made from the table of metrics. Must not print.

Each rule has a section of its name in ``docs/production/runbooks.md``. Rules exclude each other: a sick
dependency also fills the queue, and its alert alone should wake someone up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from guardrails.cli._metric_names import POOL_LABEL, of_guard, quantile, rate, selected

__all__ = ["ALERTS", "Alert", "as_yaml", "runbook_of"]


class Alert(NamedTuple):
    """One rule.

    Attributes:
        name: Its name, and that of its section in the runbooks.
        expression: PromQL.
        lasts: How long the expression must hold.
        severity: ``"critical"`` wakes someone up; ``"warning"`` can wait for the morning; ``"info"`` is
            for who tries the guard out.
        summary: One line; ``$labels`` and ``$value`` are Prometheus'.
        description: What it means.
    """

    name: str
    expression: str
    lasts: str
    severity: Literal["critical", "warning", "info"]
    summary: str
    description: str


_BY = "job, guard"
_WINDOW = "5m"
_LONG = "10m"

_SICK = 'state=~"open|half_open"'
_BY_HAND = 'state=~"forced_open|disabled|metrics_only"'

_SICK_SHARE = 0.2
"""The share of the window for which a circuit may be open: a minute of five."""

_HELD_SECONDS = 60
"""Seconds for which a connection may be out. A statement ends at its timeout, long before."""


def _sum(expression: str, by: str = _BY) -> str:
    return f"sum by ({by}) ({expression})"


def _unless(expression: str, *others: str) -> str:
    return "".join([f"({expression})", *(f"\nunless on ({_BY}) ({other})" for other in others)])


def _either(make: Callable[[str], str]) -> str:
    """Returns the series of guards and of compartments, whose circuits and refusals are their own."""
    return f"{make('guardrails')} or {make('guardrails.compartment')}"


def _labels(prefix: str) -> str:
    return _BY if prefix == "guardrails" else f"{_BY}, compartment"


def _in_state(state: str) -> str:
    def count(prefix: str) -> str:
        return f"{_sum(selected(f'{prefix}.breaker_state', state), _labels(prefix))} > 0"

    return _either(count)


def _often_sick(prefix: str) -> str:
    """Returns the circuits that were open for a share of the last minutes, each in one process.

    A circuit that closes between two probes of a sick dependency is not open at every scrape.
    """
    share = f"avg_over_time({selected(f'{prefix}.breaker_state', _SICK)}[{_WINDOW}])"
    return f"max by ({_labels(prefix)}) (sum without (state) ({share})) > {_SICK_SHARE:g}"


def _refused(prefix: str) -> str:
    return rate(f"{prefix}.rejections", 'reason=~"bulkhead_full|queue_timeout|shed"', window=_WINDOW)


def _would_refuse(prefix: str) -> str:
    return rate(f"{prefix}.would_reject", window=_WINDOW)


# What is excluded has an alert: the share is passed for longer than that alert waits.
_was_sick = f"max by ({_BY}) ({_either(_often_sick)})"
_held = f"max by ({_BY}) ({selected('guardrails.oldest_call')}) > {_HELD_SECONDS}"

_full = _sum(_either(_refused))
_asked = f"({_sum(rate('guardrails.admissions', window=_WINDOW))} + {_full})"
_failed = _sum(rate("guardrails.calls", 'outcome="failure"', window=_WINDOW))
_ended = _sum(rate("guardrails.calls", window=_WINDOW))
_wait = of_guard(quantile(0.99, "db.client.connection.wait_time", by=f"job, {POOL_LABEL}", window=_WINDOW))


def _pool_rate(name: str) -> str:
    return _sum(rate(name, window=_LONG), f"job, {POOL_LABEL}")


_opened = f"({_pool_rate('guardrails.pool_opened')} - {_pool_rate('guardrails.pool_invalidated')})"
_taken = _pool_rate("guardrails.pool_checkouts")

ALERTS = (
    Alert(
        "GuardrailsCircuitOpen",
        f"{_in_state(_SICK)}\nor {_either(_often_sick)}",
        "1m",
        "critical",
        "The circuit of {{ $labels.guard }} {{ $labels.compartment }} is open",
        "Its dependency fails or is slow. A guard that enforces refuses calls at once, but for a few probes.",
    ),
    Alert(
        "GuardrailsCircuitByHand",
        _in_state(_BY_HAND),
        "15m",
        "warning",
        "The circuit of {{ $labels.guard }} {{ $labels.compartment }} was set by hand",
        "It is forced open, disabled or measures only, and does not react to its dependency.",
    ),
    Alert(
        "GuardrailsOverloaded",
        _unless(f"{_full} / {_asked} > 0.01", _was_sick, _held),
        "2m",
        "critical",
        "{{ $labels.guard }} refuses {{ $value | humanizePercentage }} of its calls: no slot is free",
        "More calls arrive than the pool can serve, and its dependency is well.",
    ),
    Alert(
        "GuardrailsConnectionsHeld",
        _held,
        "1m",
        "warning",
        "A connection of {{ $labels.guard }} has been held for {{ $value | humanizeDuration }}",
        "It was forgotten, or is held across other work, such as a stream or a call of another service.",
    ),
    Alert(
        "GuardrailsFailing",
        _unless(f"{_failed} / {_ended} > 0.02", _was_sick),
        "5m",
        "warning",
        "{{ $value | humanizePercentage }} of the calls of {{ $labels.guard }} fail",
        "Too few to open the circuit: some statements, one table or one replica.",
    ),
    Alert(
        "GuardrailsWaitHigh",
        _unless(f"{_wait} > 0.1", _was_sick, _held),
        "5m",
        "warning",
        "Callers wait {{ $value | humanizeDuration }} for a connection of {{ $labels.guard }}",
        "One caller in a hundred waits longer: the pool is nearly full, or connections are slow to open.",
    ),
    Alert(
        "GuardrailsShadowWouldRefuse",
        f"{_sum(_either(_would_refuse))} > 0",
        "5m",
        "info",
        "{{ $labels.guard }} would refuse {{ $value | humanize }} calls per second if it enforced",
        "It is in shadow: the calls were let in, and counted.",
    ),
    Alert(
        "GuardrailsConnectionChurn",
        _unless(of_guard(f"({_opened} / {_taken} > 0.2 and {_taken} > 0.1)"), _was_sick),
        "10m",
        "warning",
        "{{ $labels.guard }} opens a connection for {{ $value | humanizePercentage }} of its checkouts",
        "The pool keeps fewer connections than are in use, and opens and closes the rest all the time.",
    ),
)
"""Every rule."""


def runbook_of(alert: Alert, runbooks: str | None) -> str | None:
    """The address of an alert's section on the page ``runbooks``; None without one."""
    return None if runbooks is None else f"{runbooks}#{alert.name.lower()}"


def as_yaml(alerts: Iterable[Alert], runbooks: str | None) -> str:
    """Formats rules as a rule file of Prometheus.

    Args:
        alerts: The rules.
        runbooks: The address of the page with a section for each rule; None: the rules have no link.
    """
    lines = ["groups:", "  - name: guardrails", "    rules:"]
    for alert in alerts:
        lines += [
            f"      - alert: {alert.name}",
            "        expr: |-",
            *(f"          {line}" for line in alert.expression.splitlines()),
            f"        for: {alert.lasts}",
            "        labels:",
            f"          severity: {alert.severity}",
            "        annotations:",
            f"          summary: {json.dumps(alert.summary)}",
            f"          description: {json.dumps(alert.description)}",
        ]
        link = runbook_of(alert, runbooks)
        lines += [] if link is None else [f"          runbook_url: {json.dumps(link)}"]
    return "\n".join(lines)
