"""Findings as text, for the commands that have some. Depends on `guardrails.diagnosis.findings` alone."""

from __future__ import annotations

from collections.abc import Sequence

from guardrails.diagnosis.findings import Finding

__all__ = ["as_text"]


def as_text(subject: str, findings: Sequence[Finding], unseen: Sequence[str] = ()) -> str:
    """Formats the findings as text.

    Args:
        subject: The name of the server or service.
        findings: Its faults.
        unseen: The things that could not be checked.
    """
    lines = [f"{subject}: not seen: {each}" for each in unseen]
    if not findings:
        lines.append(f"{subject}: nothing found{' in what could be seen' if unseen else ''}.")
    for finding in findings:
        lines.append(f"{subject}: {finding.what}")
        lines += [f"    {detail}" for detail in finding.details]
        lines.append(f"  -> {finding.advice}")
    return "\n".join(lines)
