"""What a guard would have done with the calls of a trace, and whether a fleet would keep its budget.

``guardrails simulate`` prints it; ``docs/guides/simulate.md`` says how to read it and what the models leave
out.
"""

from __future__ import annotations

from guardrails.simulation.trace_writer import TraceWriter

__all__ = ["TraceWriter"]
