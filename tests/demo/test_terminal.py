"""The demo on a terminal of 80 columns, and its check of itself."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from guardrails.demo.figures import figures
from guardrails.demo.origin import origin
from guardrails.demo.records import Arrival, Look, PoolReport, Run, Try, User
from guardrails.demo.report import page
from guardrails.demo.scenarios import SCENARIOS
from guardrails.demo.selfcheck import Check, Meter, _compare, _Reading
from guardrails.demo.terminal import LiveTable, PlainLines, closing_lines, opening, validity_lines
from guardrails.demo.twin import difference

QUIET = Check(0.004, 0.03, 0.5, 0.0, 0.02)
LOUD = Check(0.0512, 0.9, 1.0, 0.06, 0.3)


def crowded(scenario="lock", check=QUIET):
    """A run with the widest figures there are."""
    run = Run(scenario, 600, 1, 5.0, 15.0, [])
    run.check = check
    main = SCENARIOS[scenario].main
    for twin in run.twins:
        for number in range(300):
            arrival = Arrival(13.2, main, number)
            run.arrivals.append(arrival)
            answer = "rejected" if number % 2 else "ok"
            tries = (Try(13.2, 0.25, answer),)
            twin.tries.extend(tries)
            twin.users.append(User(arrival, tries))
        twin.looks = [Look(13.5, 999, 15, 984, {"db": "half_open", "orders": "half_open"})]
    return run


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_line_of_a_pipe_is_longer_than_80_columns(scenario):
    lines = opening(SCENARIOS[scenario], difference())
    screen = PlainLines(lines.append)
    run = crowded(scenario)
    for now in (1.0, 14.0, 100.0, 599.0, 601.0):
        screen.show(run, now)
    sums = figures(crowded(scenario, LOUD))
    lines += [*validity_lines(sums), *closing_lines(sums)]
    assert [line for line in lines if len(line) > 80] == []
    assert sum(line.startswith("-- ") for line in lines) == 4  # a heading for each phase


@pytest.mark.parametrize("mode", ["shadow", "off"])
def test_a_run_whose_guards_enforce_nothing_is_not_judged_as_if_they_did(mode):
    run = crowded()
    run.mode = mode
    sums = figures(run)
    lines = [*opening(SCENARIOS["lock"], difference(), mode), *closing_lines(sums)]
    assert [line for line in lines if len(line) > 80] == []
    said = " ".join(lines)
    assert f"and in its environment GUARDRAILS_MODE={mode}." in said
    assert (
        f"With its guards {'in shadow' if mode == 'shadow' else 'off'} the guarded app refused 150 requests"
        in said
    )
    assert "Next: the same with --mode enforce." in said
    assert "doctor" not in said
    assert "What enforcing" not in page(run, sums)
    assert "<pre>db: 1 &lt; 2\nprices</pre>" in page(run, sums, ["db: 1 < 2", "prices"])


def test_the_cause_that_the_guarded_app_names_is_printed_once():
    run, lines = crowded(), []
    run.guarded.cause = "10 x shop.py:50 in OrderRepository.one, /orders wait for a lock " * 2
    screen = PlainLines(lines.append)
    for now in (7.0, 8.0, 9.0):
        screen.show(run, now)
    assert sum("after 7 s the guarded app names the cause: 10 x shop.py:50" in line for line in lines) == 1
    assert [line for line in lines if len(line) > 80] == []


def test_the_report_has_the_cause_and_the_pool_at_its_worst():
    """A report with a cause is worse than one with more callers; neither is markup."""
    run = crowded("leak")
    assert "What the guarded app reported" not in page(run, figures(run))
    run.guarded.cause = "10 x shop.py:90 in <total>"
    run.guarded.pool = max(
        PoolReport(True, 11, 9.6, "pool 'db': 10 x <gone>"), PoolReport(False, 40, 16.0, "busy")
    )
    text = page(run, figures(run))
    assert "The cause:</b> 10 x shop.py:90 in &lt;total&gt;" in text
    assert "Its pool at its worst, after 10 s:" in text
    assert "10 x &lt;gone&gt;" in text
    assert "busy" not in text.partition("What the guarded app reported")[2].partition("class=charts")[0]
    assert figures(run)["guarded"]["cause"] == run.guarded.cause
    assert figures(run)["plain"]["cause"] is None


def test_a_queue_of_thousands_stays_apart_from_the_column_before_it():
    run = crowded()
    run.twins[0].looks = [Look(13.5, 9999, 15, 9984, {})]
    lines: list[str] = []
    PlainLines(lines.append).show(run, 14.0)
    *_, heading, line = lines
    assert "15/15+9984" in line.split()
    assert len(heading) <= 80
    assert len(line) <= 80


def test_the_live_table_is_not_cut_at_80_columns():
    out = io.StringIO()
    console = Console(file=out, width=80, height=40, force_terminal=True, color_system=None)
    table = LiveTable(console)
    run = crowded()
    for now in (12.5, 13.5, 14.0):
        table.show(run, now)
    out.truncate(0)
    table._live.console.print(table._live.get_renderable())
    text = out.getvalue()
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= 80
    assert text.count("15/15 +984") == 2
    assert "150 in 0.25 s" in text
    assert text.count("half_open") >= 2


def test_a_disturbed_run_says_so_at_its_head():
    """With each reason and its bound; in the figures, above the scorecard, in the report."""
    sums = figures(crowded(check=LOUD))
    assert sums["check"]["valid"] is False
    head = " ".join(validity_lines(sums))
    assert head.startswith("THESE FIGURES ARE NOT VALID: ")
    assert "users were sent 51 ms late (p99; bound 50 ms)" in head
    assert "the host took 6% of the machine (bound 5%)" in head
    assert "other programs used 30% of the machine (bound 20%)" in head
    assert "Run it again" in " ".join(closing_lines(sums))
    text = page(crowded(check=LOUD), sums)
    assert text.index("These figures are not valid") < text.index("class=cards")


def test_a_quiet_run_ends_with_verdict_and_next_step():
    sums = figures(crowded())
    assert (sums["check"]["valid"], validity_lines(sums)) == (True, [])
    said = " ".join(closing_lines(sums))
    assert said.startswith("Once the fault was over the guarded app served ")
    assert "guardrails doctor --app MODULE:ATTR" in said
    assert "not valid" not in page(crowded(), sums)


def test_load_of_the_machine_is_separated_from_that_of_the_demo():
    """Of 100 s: 40 idle, 10 stolen, 50 busy, of which 20 were its own."""
    before = _Reading(1000.0, 400.0, 5.0, 7.0)
    after = _Reading(1100.0, 440.0, 15.0, 27.0)
    check = _compare(before, after, [0.0, 0.01, 0.2], owns_database=True)
    assert (check.busy, check.steal, check.others) == pytest.approx((0.5, 0.1, 0.3))
    assert (check.lag, check.worst_lag) == (0.2, 0.2)
    assert _compare(before, after, [0.0], owns_database=False).others is None
    assert Meter(owns_database=True).check() is None


def test_the_meter_sees_a_loop_that_is_late():
    import asyncio  # noqa: PLC0415 - here alone
    import time  # noqa: PLC0415 - likewise

    async def main():
        meter = Meter(owns_database=True)
        watching = asyncio.create_task(meter.watch())
        await asyncio.sleep(0.05)
        time.sleep(0.3)  # noqa: ASYNC251 - the fault
        await asyncio.sleep(0.05)
        watching.cancel()
        return meter.check()

    assert asyncio.run(main()).worst_lag > 0.2


def test_the_frozen_cache_shows_its_difference_in_the_tiles():
    """All users are served in the end; the times differ."""
    sums = figures(crowded("redis-freeze"))
    cards = page(crowded("redis-freeze"), sums).partition("class=cards")[2].partition("</section>")[0]
    assert "slowest of 100 answers during the fault" in cards
    assert "seconds without a good answer" in cards
    assert "seconds without one good answer" in " ".join(closing_lines(sums))


def test_the_report_names_versions_machine_and_command_and_no_person():
    run = crowded()
    run.origin = origin("guardrails demo --scenario lock")
    sums = figures(run)
    text = page(run, sums)
    assert sums["origin"]["machine"]["cores"] >= 1
    for word in (
        sums["origin"]["python"],
        f"sqlalchemy {sums['origin']['libraries']['sqlalchemy']}",
        "cores, ",
    ):
        assert word in text
    assert "<code>guardrails demo --scenario lock</code>" in text
    import getpass  # noqa: PLC0415 - here alone
    import socket  # noqa: PLC0415 - likewise

    words = str(sums["origin"])
    assert socket.gethostname() not in words.split("'")
    assert getpass.getuser() not in words.split("'")


def test_seconds_without_a_good_answer_count_only_seconds_with_arrivals():
    """After the fault users came in seconds 0, 1 and 3; a good answer came in second 1."""
    run = Run("redis-freeze", 20, 7, 5.0, 15.0, [])
    for at, seconds, answer in (
        (5.1, 2.0, "timeout"),
        (6.2, 0.1, "ok"),
        (8.4, 2.0, "timeout"),
        (4.0, 0.1, "ok"),
    ):
        arrival = Arrival(at, "/prices", len(run.arrivals))
        run.arrivals.append(arrival)
        run.plain.users.append(User(arrival, (Try(at, seconds, answer),)))
    assert figures(run)["plain"]["seconds_without_good"] == 2
    assert figures(run)["guarded"]["seconds_without_good"] == 3
