"""The charts of the dashboard for Grafana, made from the table of metrics. Must not know Grafana's format."""

from __future__ import annotations

from typing import NamedTuple

from guardrails.cli._metric_names import POOL_LABEL, quantile, rate, selected

__all__ = ["ROWS", "Panel"]

_WINDOW = "$__rate_interval"
_GUARD = 'guard=~"$guard"', 'job=~"$job"'
_POOL = f'{POOL_LABEL}=~"$guard"', 'job=~"$job"'
_NOT_CLOSED = 'state!="closed"'
_LEGEND = f"{{{{{POOL_LABEL}}}}}"


class Panel(NamedTuple):
    """One chart.

    Attributes:
        title: Its title.
        unit: Grafana's name of the unit.
        queries: Each with its legend.
        meaning: What to look at.
    """

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    meaning: str


def _sum(expression: str, by: str) -> str:
    return f"sum by ({by}) ({expression})"


def _guard_rate(name: str, by: str = "guard") -> str:
    return _sum(rate(name, *_GUARD, window=_WINDOW), by)


def _refused(name: str) -> str:
    """Returns the refusals per second of a guard and its compartments: each is counted where it happened."""
    guard, compartment = f"guardrails.{name}", f"guardrails.compartment.{name}"
    either = " or ".join(rate(each, *_GUARD, window=_WINDOW) for each in (guard, compartment))
    return _sum(either, "guard, reason")


def _guard_sum(name: str, by: str = "guard", *more: str) -> str:
    return _sum(selected(name, *_GUARD, *more), by)


def _pool_rate(name: str, by: str = POOL_LABEL) -> str:
    return _sum(rate(name, *_POOL, window=_WINDOW), by)


def _pool_sum(name: str, by: str = POOL_LABEL) -> str:
    return _sum(selected(name, *_POOL), by)


def _times(title: str, name: str, meaning: str) -> Panel:
    queries = tuple(
        (
            quantile(share, name, *_POOL, by=POOL_LABEL, window=_WINDOW),
            f"{{{{{POOL_LABEL}}}}} p{share * 100:g}",
        )
        for share in (0.5, 0.99)
    )
    return Panel(title, "s", queries, meaning)


def _routes(title: str, name: str, unit: str, meaning: str) -> Panel:
    by = f"{POOL_LABEL}, compartment, route"
    legend = _LEGEND + " {{compartment}} {{route}}"
    return Panel(title, unit, ((f"topk(10, {_pool_rate(name, by)})", legend),), meaning)


ROWS: dict[str, tuple[Panel, ...]] = {
    "Summary": (
        Panel(
            "Calls",
            "ops",
            ((_guard_rate("guardrails.calls", "guard, outcome"), "{{guard}} {{outcome}}"),),
            "Calls that ended, by outcome. For a pool these are statements.",
        ),
        Panel(
            "Refused",
            "ops",
            (
                (_refused("rejections") + " > 0", "{{guard}} {{reason}}"),
                (_guard_rate("guardrails.admissions"), "{{guard}} let in"),
            ),
            "Calls refused by a guard or its compartments, by reason, beside those that were let in.",
        ),
        Panel(
            "Circuits that are not closed",
            "short",
            (
                (_guard_sum("guardrails.breaker_state", "guard, state", _NOT_CLOSED), "{{guard}} {{state}}"),
                (
                    _guard_sum(
                        "guardrails.compartment.breaker_state", "guard, compartment, state", _NOT_CLOSED
                    ),
                    "{{guard}} {{compartment}} {{state}}",
                ),
            ),
            "Number of processes whose circuit is in this state.",
        ),
    ),
    "Circuit and slots": (
        Panel(
            "Failed and slow calls in the window",
            "percentunit",
            (
                (f"max by (guard) ({selected('guardrails.breaker_failure', *_GUARD)})", "{{guard}} failed"),
                (f"max by (guard) ({selected('guardrails.breaker_slow_call', *_GUARD)})", "{{guard}} slow"),
            ),
            "The shares that open the circuit; absent while there are too few calls.",
        ),
        Panel(
            "Slots",
            "short",
            (
                (_guard_sum("guardrails.bulkhead_in_use"), "{{guard}} in use"),
                (_guard_sum("guardrails.bulkhead_limit"), "{{guard}} limit"),
                (_guard_sum("guardrails.bulkhead_usable"), "{{guard}} usable"),
                (_guard_sum("guardrails.adaptive_limit"), "{{guard}} adaptive limit"),
                (_guard_sum("guardrails.bulkhead_waiting"), "{{guard}} waiting"),
            ),
            "In use near the limit for long means that the pool is too small, or its connections are held.",
        ),
        Panel(
            "Oldest call",
            "s",
            ((f"max by (guard) ({selected('guardrails.oldest_call', *_GUARD)})", "{{guard}}"),),
            "Above the timeout: a connection that is held across other work, or was forgotten.",
        ),
        Panel(
            "Slow and late calls",
            "ops",
            (
                (_guard_rate("guardrails.slow_calls"), "{{guard}} slow"),
                (_guard_rate("guardrails.late_results"), "{{guard}} late"),
            ),
            "Late: calls that ended after the circuit had moved on.",
        ),
        Panel(
            "Slots of compartments",
            "short",
            (
                (
                    _guard_sum("guardrails.compartment.bulkhead_in_use", "guard, compartment"),
                    "{{guard}} {{compartment}}",
                ),
            ),
            "One compartment at its limit is a workload that is contained.",
        ),
        Panel(
            "Refused by compartments",
            "ops",
            (
                (
                    _guard_rate("guardrails.compartment.rejections", "guard, compartment, reason") + " > 0",
                    "{{guard}} {{compartment}} {{reason}}",
                ),
            ),
            "Refused by a compartment; the whole guard would have let them in.",
        ),
    ),
    "Shadow": (
        Panel(
            "Guards that do not enforce",
            "short",
            ((_guard_sum("guardrails.mode", "guard, mode", 'mode!="enforce"'), "{{guard}} {{mode}}"),),
            "Number of processes in this mode.",
        ),
        Panel(
            "Would be refused",
            "ops",
            (
                (_refused("would_reject"), "{{guard}} {{reason}}"),
                (
                    _guard_rate("guardrails.compartment.would_reject", "guard, compartment, reason"),
                    "{{guard}} {{compartment}} {{reason}}",
                ),
            ),
            "Calls let in in shadow that enforcing would have refused, with those of each compartment.",
        ),
        Panel(
            "Would be stopped",
            "ops",
            ((_guard_rate("guardrails.would_stop"), "{{guard}}"),),
            "Calls in shadow that passed a deadline.",
        ),
    ),
    "Connections": (
        Panel(
            "Connections",
            "short",
            (
                (
                    _pool_sum("db.client.connection.count", f"{POOL_LABEL}, db_client_connection_state"),
                    _LEGEND + " {{db_client_connection_state}}",
                ),
                (_pool_sum("db.client.connection.max"), _LEGEND + " limit"),
                (_pool_sum("db.client.connection.idle.max"), _LEGEND + " kept"),
                (_pool_sum("guardrails.pool_overflow"), _LEGEND + " overflow"),
            ),
            "Overflow all the time: the pool opens and closes connections all the time.",
        ),
        Panel(
            "Callers that wait or get none",
            "ops",
            (
                (_pool_rate("guardrails.pool_waits"), _LEGEND + " had to wait"),
                (_pool_rate("db.client.connection.timeouts"), _LEGEND + " waited in vain"),
                (_pool_rate("guardrails.pool_exhausted"), _LEGEND + " got none"),
                (_pool_sum("db.client.connection.pending_requests"), _LEGEND + " waiting now"),
            ),
            "All zero in a pool that is large enough.",
        ),
        Panel(
            "Connections opened and closed",
            "ops",
            (
                (_pool_rate("guardrails.pool_checkouts"), _LEGEND + " checkouts"),
                (_pool_rate("guardrails.pool_opened"), _LEGEND + " opened"),
                (_pool_rate("guardrails.pool_closed"), _LEGEND + " closed"),
                (_pool_rate("guardrails.pool_invalidated"), _LEGEND + " invalidated"),
            ),
            "Invalidated: closed because they had failed, or their work was stopped.",
        ),
        _times(
            "Wait for a connection", "db.client.connection.wait_time", "The caller's view of a full pool."
        ),
        _times("Hold of a connection", "db.client.connection.use_time", "What guardrails size needs."),
        _times("Statements", "db.client.operation.duration", "Shorter than hold: held across other work."),
        _times("Opening a connection", "db.client.connection.create_time", "Slow: DNS, TLS or the server."),
    ),
    "Fleet": (
        Panel(
            "Leases and their budget",
            "short",
            (
                (_pool_sum("guardrails.fleet_limit", "budget"), "{{budget}} leased"),
                (_pool_sum("guardrails.fleet_wants", "budget"), "{{budget}} wanted"),
                (_pool_sum("guardrails.fleet_safe_share", "budget"), "{{budget}} safe shares"),
                (f"max by (budget) ({selected('guardrails.fleet_budget', *_POOL)})", "{{budget}} budget"),
            ),
            "Wanted above the budget for long: too few connections, or they are held for too long.",
        ),
        Panel(
            "Workers",
            "short",
            (
                (f"max by (budget) ({selected('guardrails.fleet_workers', *_POOL)})", "{{budget}} known"),
                (_pool_sum("guardrails.fleet_in_contact", "budget"), "{{budget}} in contact"),
            ),
            "Fewer in contact than known: some cannot reach the store, or have died.",
        ),
    ),
    "Routes": (
        _routes(
            "Connections held by route",
            "guardrails.pool_route_hold",
            "short",
            "Seconds of holding per second: the average number of connections.",
        ),
        _routes(
            "Statements running by route",
            "guardrails.pool_route_use",
            "short",
            "Much less than held: the route holds connections across other work.",
        ),
        _routes(
            "Callers waiting by route",
            "guardrails.pool_route_wait",
            "short",
            "Seconds of waiting per second: the average number of waiting callers.",
        ),
        _routes("Checkouts by route", "guardrails.pool_route_checkouts", "ops", "How often, not how long."),
    ),
}
"""The charts by the title of their row."""
