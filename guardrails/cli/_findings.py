"""Findings and tables as text, for the commands that have some. Depends on findings and tables alone."""

from __future__ import annotations

from collections.abc import Sequence

from guardrails.diagnosis.findings import Finding
from guardrails.diagnosis.tables import Table

__all__ = ["as_table", "as_text"]


def as_text(subject: str, findings: Sequence[Finding], unseen: Sequence[str] = ()) -> str:
    """Formats the findings as text.

    Args:
        subject: The name of the server or service.
        findings: Its faults.
        unseen: The things that could not be checked.
    """
    lines = []
    if not findings:
        lines.append(f"{subject}: nothing found{' in what could be seen' if unseen else ''}.")
    for finding in findings:
        lines.append(f"{subject}: {finding.what}")
        lines += [f"    {detail}" for detail in finding.details]
        lines.append(f"  -> {finding.advice}")
    lines += [f"{subject}: not seen: {each}" for each in unseen]
    return "\n".join(lines)


def as_table(table: Table) -> str:
    """Formats a table as lines of aligned columns; figures are aligned to the right."""
    rows = [table.columns, *([_cell(value) for value in row] for row in table.rows)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(table.columns))]
    right = [
        any(isinstance(row[index], int | float) for row in table.rows) for index in range(len(table.columns))
    ]
    lines = [
        "  ".join(
            cell.rjust(width) if is_figure else cell.ljust(width)
            for cell, width, is_figure in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    ]
    return "\n".join([table.title, *(f"    {line}" for line in lines)])


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    return "".join(char if char.isprintable() else "?" for char in text)
