"""Findings in words, for every command that has some."""

from __future__ import annotations

from collections.abc import Sequence

from guardrails.diagnosis.findings import Finding

__all__ = ["as_text"]


def as_text(whose: str, findings: Sequence[Finding], unseen: Sequence[str] = ()) -> str:
    """Words the findings for people.

    Args:
        whose: What was looked at.
        findings: What is wrong with it.
        unseen: What could not be looked at.
    """
    lines = [f"{whose}: not seen: {each}" for each in unseen]
    if not findings:
        lines.append(f"{whose}: nothing found{' in what could be seen' if unseen else ''}.")
    for finding in findings:
        lines.append(f"{whose}: {finding.what}")
        lines += [f"    {detail}" for detail in finding.details]
        lines.append(f"  -> {finding.advice}")
    return "\n".join(lines)
