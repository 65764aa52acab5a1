"""Finds the code that holds connections whose callers have gone on. Depends on frames; changes no pool."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from guardrails._pool.frames import Caller, Site, lines
from guardrails._pool.holders import Holder
from guardrails._pool.referrers import referrers

if TYPE_CHECKING:
    from guardrails._dbapi.checkout import DBAPICheckout

__all__ = ["is_in", "search_for_gone"]

_AGAIN = 5.0
"""Seconds after which a connection that no code held is searched for again."""


def is_in(asked: Site, now: Site | None) -> bool:
    """True if a caller is still in code that asked for a connection."""
    codes = {code for code, _ in now or ()}
    return any(code in codes for code, _ in asked)


def search_for_gone(out: list[DBAPICheckout], holders: list[Holder], caller: Caller) -> None:
    """Replaces the holders that seem gone by the code that still holds their connections.

    A generator that is suspended in its block may do so, or a caller further out.

    Args:
        out: The checkouts.
        holders: What is known of each.
        caller: Who asks.
    """
    now = time.monotonic()
    gone = [
        (index, proxy)
        for index, checkout in enumerate(out)
        if holders[index].doing == "gone"
        and checkout.next_search <= now
        and (proxy := checkout.proxy and checkout.proxy()) is not None
    ]
    if not gone:
        return
    mine = [place for place, (index, _) in enumerate(gone) if out[index].caller == caller]
    for (index, _), where in zip(gone, referrers([proxy for _, proxy in gone], mine), strict=True):
        request = out[index].request
        if where is not None or (request is not None and not request.closed):
            holders[index] = replace(holders[index], doing="other_work", now=lines(where or ()))
        else:
            out[index].next_search = now + _AGAIN
