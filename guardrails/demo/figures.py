"""Computes the figures of the scorecard and of ``--json`` from the records of a run.

Depends on the records alone. Every figure is measured; without a measurement it is None.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from guardrails.demo.percentiles import percentile
from guardrails.demo.scenarios import BYSTANDER, MAINS, NODB

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from guardrails.demo.records import Arrival, Run, Twin, User

__all__ = ["after_the_fault", "figures", "recovered_after", "seconds_without_good"]

PHASES = ("healthy", "fault", "recovery")
_ENOUGH = 0.95
_STAYS = 3
_AT_WORK = 0.5


def figures(run: Run) -> dict[str, Any]:
    """Returns the object that ``--json`` writes."""
    offered = sum(user.path in MAINS for user in run.arrivals)
    return {
        "scenario": run.scenario,
        "compartments": run.compartments,
        "mode": run.mode,
        "seconds": run.seconds,
        "seed": run.seed,
        "offered_per_s": round(offered / run.seconds, 1),
        "fault": {"start_s": round(run.fault_starts, 2), "end_s": round(run.fault_ends, 2)},
        "check": _of_check(run),
        "origin": run.origin,
        **{twin.name: _of_twin(run, twin) for twin in run.twins},
        "watched": run.guarded.watched,
    }


def _of_check(run: Run) -> dict[str, Any]:
    check = run.check
    if check is None:
        return {"valid": None, "disturbed_by": []}
    return {
        "valid": not check.disturbances,
        "disturbed_by": check.disturbances,
        "lag_p99_ms": round(check.lag * 1000.0, 1),
        "lag_max_ms": round(check.worst_lag * 1000.0, 1),
        "machine_busy": round(check.busy, 3),
        "machine_steal": round(check.steal, 3),
        "machine_others": None if check.others is None else round(check.others, 3),
    }


def _of_twin(run: Run, twin: Twin) -> dict[str, Any]:
    main = [user for user in twin.users if user.arrival.path in MAINS]
    lengths = {
        "healthy": run.fault_starts - _AT_WORK,
        "fault": run.fault_ends - run.fault_starts + _AT_WORK,
        "recovery": run.seconds - run.fault_ends,
    }
    phases = _by_phase(run, main)
    rejections = [one.seconds for user in main for one in user.tries if one.answer == "rejected"]
    sheds = [one.ended_at for user in twin.users for one in user.tries if one.answer == "rejected"]
    first_shed = min((at for at in sheds if at >= run.fault_starts), default=None)
    return {
        "users_ok_ratio": {name: _ok_ratio(users) for name, users in phases.items()},
        "goodput_per_s": {
            name: round(sum(user.served for user in users) / lengths[name], 1) if lengths[name] > 0 else None
            for name, users in phases.items()
        },
        "answer_p50_ms": _try_ms(phases, 0.50),
        "answer_p99_ms": _try_ms(phases, 0.99),
        "user_p50_ms": {name: _ms([user.seconds for user in users], 0.50) for name, users in phases.items()},
        "user_p99_ms": {name: _ms([user.seconds for user in users], 0.99) for name, users in phases.items()},
        "rejections": {
            "count": len(rejections),
            "healthy": sum(one.answer == "rejected" for user in phases["healthy"] for one in user.tries),
            "p50_ms": _ms(rejections, 0.50),
            "p99_ms": _ms(rejections, 0.99),
        },
        **_of_endpoint(run, twin, "bystander", BYSTANDER),
        **_of_endpoint(run, twin, "nodb", NODB),
        "max_in_flight": twin.max_in_flight,
        "max_checked_out": twin.max_checked_out,
        "recovered_after_s": recovered_after(*after_the_fault(run, main)),
        "first_shed_after_s": None if first_shed is None else round(first_shed - run.fault_starts, 3),
        "seconds_without_good": seconds_without_good(run, twin),
        "good_by_second": _good_by_second(run, twin, MAINS),
        "bystander_good_by_second": _good_by_second(run, twin, (BYSTANDER,)),
        "queries_left_running": twin.queries_left_running,
        "cause": twin.cause,
    }


def seconds_without_good(run: Run, twin: Twin) -> int | None:
    """Counts the seconds since the fault began in which users came and none got a good answer.

    Seconds are whole ones from the beginning of the fault; an answer counts to the second in which it came.
    """
    length = int(run.seconds - run.fault_starts)
    came = {
        int(user.at - run.fault_starts) for user in run.arrivals if _is_main_after(run, user.path, user.at)
    }
    good = {
        int(one.ended_at - run.fault_starts)
        for user in twin.users
        for one in user.tries
        if one.answer == "ok" and _is_main_after(run, user.arrival.path, one.ended_at)
    }
    silent = [second for second in range(length) if second in came and second not in good]
    return len(silent) if came else None


def _good_by_second(run: Run, twin: Twin, paths: Collection[str]) -> list[int]:
    """Counts the good answers that came in each whole second from the start of the run."""
    good = Counter(
        int(one.ended_at)
        for user in twin.users
        for one in user.tries
        if one.answer == "ok" and user.arrival.path in paths
    )
    return [good[second] for second in range(int(run.seconds))]


def _is_main_after(run: Run, path: str, at: float) -> bool:
    return path in MAINS and at >= run.fault_starts


def _of_endpoint(run: Run, twin: Twin, name: str, path: str) -> dict[str, Any]:
    phases = _by_phase(run, (user for user in twin.users if user.arrival.path == path))
    return {
        f"{name}_ok_ratio": {phase: _ok_ratio(users) for phase, users in phases.items()},
        f"{name}_p50_ms": _try_ms(phases, 0.50),
        f"{name}_p99_ms": _try_ms(phases, 0.99),
    }


def _by_phase(run: Run, users: Iterable[User]) -> dict[str, list[User]]:
    phases: dict[str, list[User]] = {name: [] for name in PHASES}
    for user in users:
        phases[_phase(run, user.arrival.at)].append(user)
    return phases


def _phase(run: Run, arrived_at: float) -> str:
    # A user that came just before the fault is still being served when it begins.
    return "fault" if 0.0 < run.fault_starts - arrived_at <= _AT_WORK else run.phase(arrived_at)


def _ok_ratio(users: Sequence[User]) -> float | None:
    return round(sum(user.served for user in users) / len(users), 4) if users else None


def _try_ms(phases: dict[str, list[User]], share: float) -> dict[str, float | None]:
    return {
        name: _ms([one.seconds for user in users for one in user.tries], share)
        for name, users in phases.items()
    }


def _ms(seconds: Sequence[float], share: float) -> float | None:
    value = percentile(seconds, share)
    return None if value is None else round(value * 1000.0, 2)


def after_the_fault(run: Run, main: Iterable[User]) -> tuple[list[int], list[int]]:
    """Counts arrivals and served users, for each whole second from the end of the fault."""
    length = max(0, int(run.seconds - run.fault_ends))
    came = Counter(int(user.at - run.fault_ends) for user in run.arrivals if _is_late(run, user))
    served = Counter(
        int(user.arrival.at - run.fault_ends) for user in main if user.served and _is_late(run, user.arrival)
    )
    return [came[second] for second in range(length)], [served[second] for second in range(length)]


def _is_late(run: Run, user: Arrival) -> bool:
    return user.path in MAINS and user.at >= run.fault_ends


def recovered_after(came: Sequence[int], served: Sequence[int]) -> float | None:
    """Finds the first of three seconds in a row in each of which at least 95 % of the users were served.

    Args:
        came: Users by the whole second of their arrival, counted from the end of the fault.
        served: Those of them that were served in the end.

    Returns:
        Seconds from the end of the fault to the start of that second; None when there is none. A
        second without arrivals is no evidence, so it does not count.
    """
    well = [users > 0 and done >= _ENOUGH * users for users, done in zip(came, served, strict=True)]
    for second in range(len(well) - _STAYS + 1):
        if all(well[second : second + _STAYS]):
            return float(second)
    return None
