"""What a guarded call costs, ours and the peers' side by side in one run.

    python tests/benchmarks/bench_core.py [--quick] [--only TEXT]... [--json FILE] [--svg FILE] [--page FILE]

It prints; it asserts nothing. The peers are the dependency group ``bench``; a peer that is not installed is
left out.
docs/internals/benchmarks.md says how it measures and what the figures mean.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import pathlib
import platform

from core_bench import pages
from core_bench.contenders import CONTENDERS, installed, versions
from core_bench.goals import reached
from core_bench.questions import FULL, QUICK, questions
from core_bench.tables import Table, as_text, to_json


def options_of() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a first look: few repetitions, small sizes")
    parser.add_argument(
        "--only", action="append", default=[], metavar="TEXT", help="only questions with this in their name"
    )
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the figures")
    parser.add_argument("--svg", type=pathlib.Path, metavar="FILE", help="write the chart")
    parser.add_argument("--page", type=pathlib.Path, metavar="FILE", help="fill the page's tables in")
    return parser.parse_args()


def main() -> None:
    """Asks what was asked for, and prints each answer as soon as it is known."""
    options = options_of()
    logging.disable(logging.CRITICAL)  # of opened circuits, which are meant to open
    contenders = installed()
    for missing in sorted({each.distribution for each in CONTENDERS if not each.is_installed}):
        print(f"not installed: {missing}")
    tables: list[Table] = []
    with asyncio.Runner() as runner:
        asked = dict(questions(QUICK if options.quick else FULL, contenders, runner))
        wanted = [name for name in asked if any(text in name for text in options.only or asked)]
        if not wanted:
            raise SystemExit(f"no question has that in its name; there are: {', '.join(asked)}")
        for name in wanted:
            tables.append(asked[name]())
            print(as_text(tables[-1]), flush=True)
    goals = reached(tables)
    if goals.rows:
        tables.append(goals)
        print(as_text(goals))
    run = {"machine": machine(), "quick": options.quick, "versions": versions(), "tables": to_json(tables)}
    if options.json:
        options.json.write_text(json.dumps(run, indent=1) + "\n")
    if options.svg:
        options.svg.write_text(pages.chart(tables))
    if options.page:
        options.page.write_text(pages.fill(options.page.read_text(), run))


def machine() -> dict[str, str | int | None]:
    """What the figures depend on; nothing that names the machine."""
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
    }


if __name__ == "__main__":
    main()
