"""What a guarded call costs, ours and the peers' side by side in one run.

    python tests/benchmarks/bench_core.py [--quick] [--only TEXT]... [--json FILE] [--svg FILE]

It prints; it asserts nothing. Peers come with the ``bench`` extra; one that is not installed is left out.
docs/benchmarks.md says how it measures and what the figures mean.
"""

from __future__ import annotations

import argparse
import asyncio

from core_bench import calls
from core_bench.contenders import installed
from core_bench.tables import call_table
from core_bench.timing import Effort, compare

FULL = Effort(repetitions=41, slice_ns=4_000_000)
QUICK = Effort(repetitions=7, slice_ns=1_000_000)


def main():
    """Measures what was asked for, and prints each table as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the time, for a first look")
    parser.add_argument("--only", action="append", metavar="TEXT", help="only cases with this in their name")
    options = parser.parse_args()
    effort = QUICK if options.quick else FULL
    contenders = installed()
    with asyncio.Runner() as runner:
        for case in calls.CASES:
            if options.only and not any(text in case.name for text in options.only):
                continue
            costs = compare(calls.loops_of(case, contenders, runner), effort)
            print(call_table(case.name, costs), flush=True)


if __name__ == "__main__":
    main()
