"""The percentiles of the demo's figures. Depends on nothing."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

__all__ = ["percentile"]


def percentile(values: Sequence[float], share: float) -> float | None:
    """Returns the smallest value that at least this share of the values does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(1, ceil(share * len(ordered))) - 1] if ordered else None
