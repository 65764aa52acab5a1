"""How costs are printed. Knows figures and columns, not where they come from."""

from __future__ import annotations

from core_bench.timing import BARE, Cost

OURS = "Guard"


def call_table(title: str, costs: dict[str, Cost]) -> str:
    """One case: nanoseconds, the middle half of the repetitions, ratios to the bare call and to ours."""
    ours = costs.get(OURS)
    head = f"{title:34} {'ns':>9} {'over bare':>10} {'middle half':>19} {'x bare':>8} {'x Guard':>8}"
    rows = [head]
    for name, cost in costs.items():
        over = "" if name == BARE else f"{cost.over_bare:,.0f}"
        spread = "" if name == BARE else f"{cost.low:,.0f} .. {cost.high:,.0f}"
        share = f"{cost.over_bare / ours.over_bare:.2f}" if ours and name != BARE else ""
        rows.append(
            f"  {name:32} {cost.whole:9,.0f} {over:>10} {spread:>19} {cost.times_bare:8.1f} {share:>8}"
        )
    return "\n".join(rows) + "\n"
