"""The four classes of calls, by how much it matters that they are served. Knows words, no slots.

They are those of "Handling Overload", chapter 21 of *Site Reliability Engineering* (Google, 2016).
"""

from __future__ import annotations

from typing import Literal

__all__ = ["CLASSES", "CRITICAL", "Criticality"]

Criticality = Literal["CRITICAL_PLUS", "CRITICAL", "SHEDDABLE_PLUS", "SHEDDABLE"]

CLASSES: tuple[Criticality, ...] = ("SHEDDABLE", "SHEDDABLE_PLUS", "CRITICAL", "CRITICAL_PLUS")
"""The least important first: a class's place here is its *rank*."""

CRITICAL = CLASSES.index("CRITICAL")
"""The rank of a call of which nobody has said anything."""
