"""Finds the code that still holds connections whose callers have ended.

Depends on frames and references; must not import pools.
"""

from __future__ import annotations

import inspect
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from guardrails._pool.frames import Caller, lines
from guardrails._pool.holders import Holder
from guardrails._pool.referrers import referrers

if TYPE_CHECKING:
    from guardrails._pool.checkout import HeldCheckout

__all__ = ["find_gone"]

_YIELDS = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR

_SEARCH_INTERVAL = 5.0
"""Seconds until the next search for the holder of a connection that no code held."""


def find_gone(out: list[HeldCheckout], holders: list[Holder], caller: Caller) -> None:
    """Finds the code that holds the connections of callers who have ended, and corrects their holders.

    Such code is a generator that is suspended in its block, or a caller further out. A connection that was
    taken for a request is not gone before that request has ended.

    Args:
        out: The checkouts.
        holders: The holder of each checkout; changed in place.
        caller: The thread or task that asks.
    """
    now = time.monotonic()
    gone = [
        (index, kept)
        for index, checkout in enumerate(out)
        if holders[index].doing in {"gone", "other_work"}
        and not holders[index].now
        and checkout.next_search <= now
        and (kept := checkout.held_object()) is not None
    ]
    if not gone:
        return
    own = [place for place, (index, _) in enumerate(gone) if out[index].caller == caller]
    for (index, _), where in zip(gone, referrers([kept for _, kept in gone], own), strict=True):
        request = out[index].request
        if where is not None or (request is not None and request.is_open):
            at_yield = where is not None and bool(where[0][0].co_flags & _YIELDS)
            now_at = lines(where or ())
            holders[index] = replace(holders[index], doing="other_work", now=now_at, at_yield=at_yield)
        else:
            out[index].next_search = now + _SEARCH_INTERVAL
