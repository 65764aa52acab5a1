"""A script for cron, which ends in time and says by its exit code what happened.

python cron_job.py 3

Exit 0: done. 75, EX_TEMPFAIL of sysexits.h: refused, the next run may succeed. 1: it failed, or its time
was over.
"""

from __future__ import annotations

import os
import sys

from summaries import summarize

from guardrails import CallTimeoutError, DeadlineSpentError, RejectedError, deadline


def main(month: int) -> int:
    """Runs the job once, for at most LIMIT seconds."""
    try:
        with deadline(float(os.environ.get("LIMIT", "60"))):
            amount = summarize(month)
    except (CallTimeoutError, DeadlineSpentError) as late:
        print(f"stopped: {late}", file=sys.stderr)
        return 1
    except RejectedError as refused:
        print(f"refused: {refused}", file=sys.stderr)
        return os.EX_TEMPFAIL
    print(f"month {month}: {amount}")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
