"""Many processes, one connection budget, one verdict. Redis needs the extra ``redis``, SQLite needs nothing.

``docs/guides/fleet.md`` has the protocol and what is promised under which fault.
"""

from __future__ import annotations

from guardrails.fleet._fleet import Budget, Fleet, Verdict

__all__ = ["Budget", "Fleet", "Verdict"]
