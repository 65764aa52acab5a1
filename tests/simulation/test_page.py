"""The pages of simulations: self-contained, with a line for each policy, and safe with hostile names."""

from __future__ import annotations

import re

from guardrails._core.outcome import Outcome
from guardrails.simulation.fleet_run import FleetPlan, run_fleet
from guardrails.simulation.page import fleet_page, replay_page
from guardrails.simulation.replay import replay
from guardrails.simulation.settings import Policy
from guardrails.simulation.trace import Trace

HOSTILE = "<script>alert(1)</script>"


def check(page):
    assert page.startswith("<!doctype html>")
    assert not re.search(r"(src|href)=", page)  # nothing is loaded from elsewhere
    assert "<script" not in page
    assert not re.search(r"\b(nan|inf)\b", page)


def test_a_replay_has_three_charts_with_a_line_for_each_policy():
    trace = Trace([(float(n) / 10, HOSTILE, 0.5, Outcome.SUCCESS) for n in range(100)])
    replays = [replay(trace, Policy(label=HOSTILE, max_concurrent_calls=many)) for many in (2, 20)]
    page = replay_page(trace, replays, [HOSTILE])
    check(page)
    assert page.count("<svg") == 3
    assert page.count('<path class="c0"') == page.count('<path class="c1"') == 3


def test_a_fleet_has_four_charts():
    page = fleet_page(run_fleet(FleetPlan(workers=3, budget=12, hours=0.02)), ["3 workers"])
    check(page)
    assert page.count("<svg") == 4
    assert page.count("<path") == 6
    assert "3 workers" in page


def test_a_trace_of_a_single_call_has_a_page():
    trace = Trace([(5.0, "a", 0.0, Outcome.SUCCESS)])
    check(replay_page(trace, [replay(trace, Policy(max_concurrent_calls=1))], []))
