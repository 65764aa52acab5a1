"""Findings in words, for every command that has some."""

from __future__ import annotations

from collections.abc import Sequence

from guardrails.diagnosis.findings import Finding

__all__ = ["as_text"]


def as_text(whose: str, findings: Sequence[Finding]) -> str:
    """What was found, for people.

    Args:
        whose: What was looked at.
        findings: What is wrong with it.
    """
    if not findings:
        return f"{whose}: nothing found."
    lines = []
    for finding in findings:
        lines.append(f"{whose}: {finding.what}")
        lines += [f"    {detail}" for detail in finding.details]
        lines.append(f"  -> {finding.advice}")
    return "\n".join(lines)
