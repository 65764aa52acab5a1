"""The benchmark itself: its sums, its answers in a tiny setting, its command, and the docs it fills."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import pathlib
import subprocess
import sys
import xml.dom.minidom

import pytest
from core_bench import pages
from core_bench.calls import DependencyError, fail_until_refused
from core_bench.contenders import CONTENDERS, Contender, installed
from core_bench.goals import GOALS, reached
from core_bench.questions import Scale, questions
from core_bench.tables import Table, as_text, from_json
from core_bench.timing import BARE, Effort, compare

from support.paths import DOCS

HERE = pathlib.Path(__file__).parent

TINY = Scale(
    calls=Effort(repetitions=3, slice_ns=20_000, warm_ns=0),
    crowds=Effort(repetitions=2, slice_ns=20_000, warm_ns=0),
    sizes=(5, 20),
    seconds=(5, 20),
    repetitions=1,
    instances=3,
    calls_each=5,
    rejections=50,
    convoy=50,
)
NAMES = [name for name, _ in questions(TINY, installed(), runner=None)]


_answers = {}


@pytest.fixture
def ask():
    """Asks a question in the tiny setting, each only once."""

    def answer(name):
        if name not in _answers:
            with asyncio.Runner() as runner:
                _answers[name] = dict(questions(TINY, installed(), runner))[name]()
            if "reject" in name:
                gc.collect()  # a bulkhead is full because of a call that never ends
        return _answers[name]

    return answer


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", NAMES)
def test_every_question_is_answered(name, ask):
    """Each table has figures for our own guard and for some peer, and all of them are numbers."""
    table = ask(name)
    assert table.name == name
    assert "Guard" in table.rows
    for contender, row in table.rows.items():
        figures = [figure for figure in row.values() if figure is not None]
        assert figures, contender
        assert all(map(math.isfinite, figures)), contender
    if BARE in table.rows and "whole" in table.rows[BARE]:
        assert all(
            row["whole"] > 0 and row["low"] <= row["over_bare"] <= row["high"] for row in table.rows.values()
        )
        assert table.rows["Guard"]["times_ours"] == 1
    text = as_text(table).splitlines()
    assert [line.split("  ")[0] for line in text] == [text[0].split("  ")[0], *table.rows]


def test_the_bare_call_of_the_same_repetition_is_subtracted():
    """A machine that gets slower by the minute changes neither ratio."""
    slowness = iter(range(1, 1000))

    def taking(nanoseconds):
        return lambda turns: turns * nanoseconds * pace["now"]

    def bare(turns):
        pace["now"] = next(slowness)
        return turns * 10 * pace["now"]

    pace = {"now": 1}
    loops = {BARE: bare, "Guard": taking(110), "a peer": taking(310)}
    costs = compare(loops, Effort(repetitions=1, slice_ns=1, warm_ns=0))
    assert (costs["Guard"].times_bare, costs["a peer"].times_bare) == (11, 31)
    assert (costs["Guard"].times_ours, costs["a peer"].times_ours) == (1, 3)
    assert costs["a peer"].over_bare == 300 * pace["now"]


def test_contenders_take_turns_and_each_begins_once():
    """No contender always comes first, when the machine is still cold."""
    order = []

    def named(name):
        def loop(turns):
            order.append(name)
            return turns * 10.0

        return loop

    effort = Effort(repetitions=3, slice_ns=10, warm_ns=0)
    compare({name: named(name) for name in (BARE, "b", "c")}, effort)
    assert order[-9:] == [BARE, "b", "c", "b", "c", BARE, "c", BARE, "b"]


def test_a_loop_is_warm_and_fills_its_slice():
    """Calls are added until a slice is full, and made until the code has run long enough."""
    calls = []

    def loop(turns):
        calls.append(turns)
        return turns * 10.0

    compare({BARE: loop}, Effort(repetitions=1, slice_ns=1000, warm_ns=5000))
    *warming, measured = calls
    assert measured == 100
    assert sum(warming) * 10 >= 5000


def test_who_never_refuses_is_found_out():
    """A circuit that stays closed would be measured as a rejection that costs nothing."""
    with pytest.raises(RuntimeError, match="nothing was refused"):
        fail_until_refused(_failing_loop)


def _failing_loop(_turns):
    raise DependencyError


def test_goals_stand_beside_what_was_measured():
    """A goal is left out if its question was not asked or its peer is not there."""
    costs = {
        "Guard": {"over_bare": 500.0},
        "nopanic": {"times_ours": 2.0},
        "Bulkhead": {"over_bare": 700.0},
    }
    windows = {"Guard": {"10": 400.0, "100": 900.0, "1,000": 420.0}}
    goals = reached(
        [Table("calls/sync/closed/decorator", "ns", costs), Table("windows/calls", "ns", windows)]
    )
    assert {what: row["measured"] for what, row in goals.rows.items()} == {
        "the whole guard, sync (ns over the bare call)": 500,
        "the whole guard in nopanic's breakers, sync": 0.5,
        "Bulkhead alone (ns over the bare call)": 700,
        "the largest count window in smallest ones": 1.05,
    }


def test_every_goal_finds_its_figure(ask):
    """The goals' questions exist, and hold the figures that the goals look for."""
    if installed() != list(CONTENDERS):
        pytest.skip("some goals need a peer of the bench extra")
    assert len(reached([ask(name) for name in {goal.table for goal in GOALS}]).rows) == len(GOALS)


def test_a_peer_that_is_not_installed_takes_no_part():
    """The benchmark runs with whatever peers there are."""
    stranger = Contender("stranger", "no-such-distribution", None, None, None)
    assert not stranger.is_installed
    assert {each.name for each in installed()} >= {each.name for each in CONTENDERS if each.is_ours}


def test_the_command_writes_json_chart_and_page(tmp_path):
    """The files hold the figures that were printed, and a page keeps what was not asked."""
    page = tmp_path / "page.md"
    page.write_text(
        "Before\n<!-- figures: memory/weight -->\nold\n<!-- end -->\n"
        "<!-- figures: threads/8 -->\nkept\n<!-- end -->\nAfter\n"
    )
    files = {kind: tmp_path / f"out.{kind}" for kind in ("json", "svg")}
    command = [sys.executable, HERE / "bench_core.py", "--quick", "--only", "memory/weight"]
    command += ["--only", "calls/sync/closed/decorator", "--page", page]
    command += ["--json", files["json"], "--svg", files["svg"]]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100).stdout
    run = json.loads(files["json"].read_text())
    calls, weight, goals = from_json(run["tables"])
    assert as_text(calls) in printed
    assert as_text(weight) in printed
    assert as_text(goals) in printed
    chart = xml.dom.minidom.parse(str(files["svg"]))
    assert len(chart.getElementsByTagName("rect")) == len(calls.rows) - 1
    text = page.read_text()
    assert text == pages.fill(text, run)
    assert "old" not in text
    assert "| Guard |" in text
    assert text.endswith("-->\nkept\n<!-- end -->\nAfter\n")


def test_a_question_that_does_not_exist_is_refused():
    """A misspelt --only is told what there is."""
    command = [sys.executable, HERE / "bench_core.py", "--only", "calls/sink"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "calls/sync/closed/decorator" in done.stderr


def test_the_docs_show_the_figures_of_the_stored_run():
    """No figure on the page or in the chart is typed by hand."""
    run = json.loads((DOCS / "internals" / "benchmarks.json").read_text())
    page = (DOCS / "internals" / "benchmarks.md").read_text()
    assert pages.fill(page, run) == page
    asked = {table["name"] for table in run["tables"]} | {"run"}
    assert set(pages.marked(page)) <= asked
    assert (DOCS / "internals" / "benchmarks.svg").read_text() == pages.chart(from_json(run["tables"]))
