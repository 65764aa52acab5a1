"""The same app twice: what differs is what is shown, and nothing else."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from guardrails.demo import figures
from guardrails.demo.charts import Chart, Line, draw
from guardrails.demo.records import Look, Run, Transition, Try
from guardrails.demo.report import page
from guardrails.demo.twin import difference, shop_source


def test_the_plain_source_knows_nothing_of_guardrails():
    plain = shop_source(guarded=False)
    assert "import guard" not in plain
    assert "protect(" not in plain
    assert "Middleware" not in plain
    compile(plain, "shop.py", "exec")


@pytest.mark.parametrize("compartments", ["declared", "auto", "none"])
def test_the_difference_is_what_is_shown(compartments):
    plain, guarded = (
        shop_source(guarded=which, compartments=compartments).splitlines() for which in (False, True)
    )
    assert plain == shop_source(guarded=False).splitlines()
    more = [line.removesuffix("  # guardrails") for line in guarded if line not in plain]
    assert more == [line for added, line in difference(compartments) if added]
    assert [line for line in guarded if not line.endswith("  # guardrails")] == plain
    context = [line for added, line in difference(compartments) if not added]
    assert all(line in plain for line in context)
    assert len(more) <= 10


def test_without_declared_compartments_no_function_is_touched():
    lines = [line for added, line in difference("auto") if added]
    assert lines == [
        "from guardrails import BreakerPolicy, protect",
        "from guardrails.integrations.asgi import GuardrailsMiddleware",
        'db = protect(engine, name="db", compartments="auto")',
        "in_a_row = BreakerPolicy(consecutive_failures=5)",
        'prices = protect(cache, name="prices", timeout=0.2, breaker=in_a_row)',
        "app.add_middleware(GuardrailsMiddleware, guards=[db])",
    ]
    assert 'db = protect(engine, name="db", compartments="none")' in [line for _, line in difference("none")]
    compile(shop_source(guarded=True, compartments="none"), "shop.py", "exec")


class Outline(HTMLParser):
    """Notes what a page would fetch, and whether its tags close."""

    def __init__(self):
        super().__init__()
        self.fetched, self.open, self.seen = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.fetched += [value for name, value in attrs if name in {"src", "href", "srcset"}]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def a_run():
    run = Run("lock", 20, 1, 5.0, 15.0, [])
    for twin, answer in ((run.plain, "timeout"), (run.guarded, "ok")):
        twin.tries = [Try(at / 10, 0.2, answer) for at in range(200)]
        twin.looks = [Look(at / 2, 20, 15, at * 10, {}) for at in range(40)]
    run.guarded.changes = [
        Transition(6.0, "orders", "closed", "open"),
        Transition(16.0, "<db>", "half_open", "closed"),
    ]
    return run


def test_the_report_is_one_page_without_requests():
    run = a_run()
    text = page(run, figures.figures(run))
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    assert outline.fetched == []
    assert "@import" not in text
    assert "url(" not in text
    assert "<script" not in text
    assert outline.seen.count("svg") == 4
    assert "&lt;db&gt;" in text
    assert "@guarded(orders)" in text


def test_an_empty_run_still_makes_a_page():
    run = Run("burst", 20, 1, 5.0, 15.0, [])
    assert "No circuit changed its state" in page(run, figures.figures(run))


def chart_of(*points, floor=None):
    return draw(
        Chart(
            name="x",
            lines=[Line("plain", points)],
            seconds=10.0,
            shaded=(2.0, 4.0),
            label=lambda value: f"{value:g}",
            floor=floor,
        )
    )


def test_a_gap_interrupts_the_line():
    assert chart_of((0.0, 1.0), (1.0, None), (2.0, 1.0)).count("M") == 2


def test_ticks_cover_the_values():
    for most in (1.0, 7.0, 42.0, 90.0, 180.0, 1234.0):
        svg = chart_of((0.0, most))
        ticks = [
            float(part.split("<")[0]) for part in svg.split('class="y"')[1:] for part in [part.split(">")[1]]
        ]
        assert ticks[0] == 0
        assert most <= ticks[-1] <= 2.5 * most + 1
        assert 2 <= len(ticks) <= 7


def test_a_logarithmic_axis_has_ticks_at_powers_of_ten_and_draws_zero():
    svg = chart_of((0.0, 0.0), (1.0, 2000.0), floor=1.0)
    for tick in ("1", "10", "100", "1000", "10000"):
        assert f">{tick}</text>" in svg
