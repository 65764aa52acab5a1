"""How answers are shown: as text, as Markdown, as JSON. Knows rows and columns, not what was asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from core_bench.timing import BARE, Cost

_LARGE = 100
"""Figures from here on are shown without decimals."""

Row = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Table:
    """One question and its answer.

    Attributes:
        name: How ``--only`` and the docs find it.
        unit: Of the figures; empty if the rows say it.
        rows: By contender, the columns by name; for costs those of `Cost`.
    """

    name: str
    unit: str
    rows: Mapping[str, Row]

    @classmethod
    def of(cls, name: str, unit: str, rows: Mapping[str, Row]) -> Table:
        """A table of figures to the hundredth, which is finer than anything here can be measured."""
        return cls(name, unit, {contender: _rounded(row) for contender, row in rows.items()})

    @classmethod
    def of_costs(cls, name: str, costs: Mapping[str, Cost]) -> Table:
        """The table of costs against a bare call."""
        return cls.of(name, "ns", {contender: asdict(cost) for contender, cost in costs.items()})


COST_COLUMNS: dict[str, Callable[[Row], str]] = {
    "ns": lambda row: f"{row['whole']:,.0f}",
    "over bare": lambda row: f"{row['over_bare']:,.0f}",
    "middle half": lambda row: f"{row['low']:,.0f} .. {row['high']:,.0f}",
    "x bare": lambda row: f"{row['times_bare']:,.1f}",
    "x Guard": lambda row: "" if row["times_ours"] is None else f"{row['times_ours']:,.2f}",
}


def cells(table: Table) -> list[list[str]]:
    """The table as text, the head first."""
    first = next(iter(table.rows.values()))
    if "over_bare" in first:
        shown = [[table.name, *COST_COLUMNS]]
        for name, row in table.rows.items():
            texts = [show(row) for show in COST_COLUMNS.values()]
            shown.append([name, *(texts if name != BARE else [texts[0], "", "", "", ""])])
        return shown
    head = f"{table.name}, {table.unit}" if table.unit else table.name
    return [[head, *first], *([name, *map(_shown, row.values())] for name, row in table.rows.items())]


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= _LARGE or value == int(value) else f"{value:,.2f}"


def as_text(table: Table) -> str:
    """For a terminal."""
    rows = cells(table)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    ]
    return "\n".join(lines) + "\n"


def as_markdown(table: Table) -> str:
    """For the docs."""
    head, *rows = cells(table)
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows]) + "\n"


def to_json(tables: list[Table]) -> list[dict[str, Any]]:
    """As ``--json`` writes them."""
    return [asdict(table) for table in tables]


def from_json(stored: list[dict[str, Any]]) -> list[Table]:
    """What ``to_json`` made, read back."""
    return [Table(**each) for each in stored]


def _rounded(row: Row) -> Row:
    return {column: None if value is None else round(value, 2) for column, value in row.items()}
