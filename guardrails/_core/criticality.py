"""The four classes of criticality of calls. Depends on nothing.

Source: "Handling Overload", chapter 21 of *Site Reliability Engineering* (Google, 2016).
"""

from __future__ import annotations

from typing import Literal

__all__ = ["CLASSES", "CRITICAL", "Criticality"]

Criticality = Literal["CRITICAL_PLUS", "CRITICAL", "SHEDDABLE_PLUS", "SHEDDABLE"]

CLASSES: tuple[Criticality, ...] = ("SHEDDABLE", "SHEDDABLE_PLUS", "CRITICAL", "CRITICAL_PLUS")
"""The least important first: the index of a class is its *rank*."""

CRITICAL = CLASSES.index("CRITICAL")
"""The default rank."""
