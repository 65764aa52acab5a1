"""The sums: every figure of the scorecard from records made by hand."""

from __future__ import annotations

import pytest

from guardrails.demo.figures import after_the_fault, figures, recovered_after
from guardrails.demo.frames import frame
from guardrails.demo.percentiles import percentile
from guardrails.demo.records import Arrival, Look, Run, Try, User
from guardrails.demo.terminal import scorecard_lines

FULL, NONE = 10, 0


@pytest.mark.parametrize(
    ("came", "served", "expected"),
    [
        ([FULL] * 5, [FULL] * 5, 0.0),
        ([FULL] * 5, [NONE, NONE, FULL, FULL, FULL], 2.0),
        ([FULL] * 5, [NONE, NONE, NONE, FULL, FULL], None),  # two seconds prove too little
        ([FULL] * 7, [FULL, FULL, NONE, NONE, FULL, FULL, FULL], 4.0),  # a relapse does not count
        ([FULL] * 5, [NONE] * 5, None),
        ([20] * 3, [19] * 3, 0.0),  # 95 % is enough
        ([100] * 3, [94] * 3, None),
        ([0] * 5, [0] * 5, None),  # a second in which nobody came proves nothing
        ([0, FULL, FULL, FULL], [0, FULL, FULL, FULL], 1.0),
        ([FULL, FULL], [FULL, FULL], None),  # the run was too short to tell
        ([], [], None),
    ],
)
def test_recovered_after(came, served, expected):
    assert recovered_after(came, served) == expected


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([], 0.5, None),
        ([3.0], 0.99, 3.0),
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        ([1.0, 2.0], 0.5, 1.0),
        (list(range(1, 101)), 0.99, 99),
        (list(range(1, 101)), 1.0, 100),
        ([5, 1], 0.0, 1),
    ],
)
def test_percentile_is_the_nearest_rank(values, share, expected):
    assert percentile(values, share) == expected


def run_of(arrivals=()):
    return Run("lock", 20, 7, 5.0, 15.0, list(arrivals))


def tell(run, twin, *stories):
    """Each story is an arrival and its tries as (meant at, seconds, answer)."""
    for at, path, *tries in stories:
        arrival = Arrival(at, path, len(run.arrivals))
        run.arrivals.append(arrival)
        user = User(arrival, tuple(Try(*one) for one in tries))
        twin.users.append(user)
        if path == "/orders":
            twin.tries.extend(user.tries)


def test_users_count_to_the_phase_in_which_they_arrived():
    run = run_of()
    tell(
        run,
        run.guarded,
        (1.0, "/orders", (1.0, 0.1, "ok")),
        (14.0, "/orders", (14.0, 0.001, "rejected"), (16.0, 0.2, "ok")),
        (14.5, "/orders", (14.5, 2.0, "timeout"), (17.0, 0.1, "error")),
        (15.0, "/orders", (15.0, 0.3, "ok")),
    )
    sums = figures(run)["guarded"]
    assert sums["users_ok_ratio"] == {"healthy": 1.0, "fault": 0.5, "recovery": 1.0}
    assert sums["goodput_per_s"] == {"healthy": 0.2, "fault": 0.1, "recovery": 0.2}
    assert sums["answer_p50_ms"] == {"healthy": 100.0, "fault": 100.0, "recovery": 300.0}
    assert sums["answer_p99_ms"]["fault"] == 2000.0
    assert sums["user_p50_ms"]["fault"] == 2200.0
    assert sums["rejections"] == {"count": 1, "healthy": 0, "p50_ms": 1.0, "p99_ms": 1.0}
    assert sums["first_shed_after_s"] == pytest.approx(9.001)


def test_user_just_before_the_fault_counts_to_the_fault():
    run = run_of()
    tell(
        run,
        run.plain,
        (4.4, "/orders", (4.4, 0.1, "ok")),
        (4.6, "/orders", (4.6, 2.0, "timeout")),
        (5.0, "/orders", (5.0, 0.1, "ok")),
    )
    assert figures(run)["plain"]["users_ok_ratio"] == {"healthy": 1.0, "fault": 0.5, "recovery": None}


def test_good_answers_count_to_the_second_in_which_they_came():
    """At the main endpoint and at the other table's, each by itself."""
    run = run_of()
    tell(
        run,
        run.plain,
        (1.0, "/orders", (1.0, 0.1, "ok")),
        (1.2, "/orders", (1.2, 2.0, "timeout"), (3.4, 0.7, "ok")),
        (19.8, "/orders", (19.8, 0.5, "ok")),  # the run is over
        (2.0, "/items", (2.0, 0.1, "ok")),
        (2.1, "/ping", (2.1, 0.1, "ok")),
    )
    sums = figures(run)["plain"]
    assert sums["good_by_second"] == [0, 1, 0, 0, 1, *[0] * 15]
    assert sums["bystander_good_by_second"] == [0, 0, 1, *[0] * 17]


def test_the_keys_are_those_that_were_promised():
    run = run_of()
    sums = figures(run)
    assert {"scenario", "seconds", "offered_per_s", "fault", "plain", "guarded"} <= sums.keys()
    assert sums["fault"] == {"start_s": 5.0, "end_s": 15.0}
    promised = {
        *("users_ok_ratio", "goodput_per_s", "answer_p50_ms", "answer_p99_ms", "rejections"),
        *("bystander_ok_ratio", "bystander_p99_ms", "nodb_ok_ratio", "nodb_p99_ms", "max_in_flight"),
        *("max_checked_out", "recovered_after_s", "first_shed_after_s", "queries_left_running"),
        *("good_by_second", "bystander_good_by_second"),
    }
    assert promised <= sums["plain"].keys() == sums["guarded"].keys()


def test_figures_without_a_measurement_are_null():
    sums = figures(run_of())["plain"]
    nothing = {"healthy": None, "fault": None, "recovery": None}
    assert sums["users_ok_ratio"] == sums["answer_p99_ms"] == sums["bystander_ok_ratio"] == nothing
    assert sums["rejections"] == {"count": 0, "healthy": 0, "p50_ms": None, "p99_ms": None}
    for name in ("max_in_flight", "recovered_after_s", "first_shed_after_s", "queries_left_running"):
        assert sums[name] is None


def test_other_endpoints_have_their_own_figures():
    run = run_of()
    tell(
        run,
        run.plain,
        (6.0, "/items", (6.0, 2.0, "timeout"), (8.5, 0.004, "ok")),
        (6.0, "/ping", (6.0, 0.002, "ok")),
        (6.0, "/reports", (6.0, 0.003, "rejected")),
    )
    sums = figures(run)["plain"]
    assert sums["bystander_ok_ratio"]["fault"] == 1.0
    assert sums["bystander_p99_ms"]["fault"] == 2000.0
    assert sums["nodb_p99_ms"]["fault"] == 2.0
    assert sums["users_ok_ratio"]["fault"] is None
    assert sums["rejections"]["count"] == 0  # the main endpoint's
    assert sums["first_shed_after_s"] == pytest.approx(1.003)


def test_seconds_after_the_fault_count_by_arrival():
    run = run_of()
    tell(
        run,
        run.plain,
        (14.9, "/orders", (14.9, 0.1, "ok")),
        (15.2, "/orders", (15.2, 4.0, "ok")),
        (16.9, "/orders", (16.9, 0.1, "error")),
        (17.0, "/items", (17.0, 0.1, "ok")),
    )
    assert after_the_fault(run, run.plain.users) == ([1, 1, 0, 0, 0], [1, 0, 0, 0, 0])


def test_a_frame_sums_up_the_last_second():
    run = run_of()
    tell(
        run,
        run.guarded,
        (1.0, "/orders", (1.0, 0.1, "ok")),
        (2.0, "/orders", (2.0, 0.1, "ok")),
        (2.2, "/orders", (2.2, 0.002, "rejected")),
        (2.3, "/orders", (2.3, 0.4, "error")),
    )
    run.guarded.looks.append(Look(2.5, 9, 7, 2, {"db": "closed", "orders": "open"}))
    now = frame(run, run.guarded, 3.0)
    assert (now.good, now.refused, now.lost) == (1, 1, 1)
    assert (now.checked_out, now.waiting, now.state) == (7, 2, "open")
    assert now.refused_seconds == 0.002
    assert frame(run, run.plain, 3.0).state is None


def test_the_scorecard_says_never_and_dash_rather_than_zero():
    run = run_of()
    tell(run, run.plain, (15.0, "/orders", (15.0, 2.0, "timeout")))
    lines = scorecard_lines(figures(run))
    assert any("good again after" in line and "never" in line for line in lines)
    assert any("a refusal takes" in line and line.split()[-2:] == ["-", "-"] for line in lines)
