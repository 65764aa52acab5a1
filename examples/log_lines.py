"""The log of the guards as JSON, with structlog: their lines, and each change of a circuit as fields.

python examples/log_lines.py
"""

from __future__ import annotations

import contextlib
import logging.config
import time
from typing import ClassVar

import structlog

from guardrails import BreakerPolicy, CircuitOpenError, Guard
from guardrails.events import Event, StateChanged

SHARED: list[structlog.typing.Processor] = [
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "json": {
            "()": structlog.stdlib.ProcessorFormatter,
            "foreign_pre_chain": SHARED,  # for lines that structlog did not make, as those of guardrails
            "processors": [
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        }
    },
    "handlers": {
        "stdout": {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stdout"}
    },
    "root": {"handlers": ["stdout"], "level": "INFO"},
    "loggers": {"guardrails": {"level": "INFO"}},  # WARNING: without the settings and the probes
}


class CircuitFields:
    """Writes each transition with its fields, for a search or an alert on the log."""

    events: ClassVar[tuple[type[StateChanged], ...]] = (StateChanged,)

    def __init__(self) -> None:
        self._log = structlog.get_logger("shop.circuits")

    def __call__(self, event: Event) -> None:
        """Is called after each transition, while no lock is held."""
        if isinstance(event, StateChanged):
            self._log.warning("circuit", guard=event.guard, old=event.old, new=event.new, cause=event.cause)


def main() -> None:
    """Opens a circuit, and has a call refused."""
    logging.config.dictConfig(LOGGING)
    structlog.configure(
        processors=[*SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    search = Guard(
        "search",
        max_concurrent_calls=5,
        breaker=BreakerPolicy(consecutive_failures=2),
        listeners=[CircuitFields()],
    )
    for _ in range(3):
        with contextlib.suppress(ConnectionError, CircuitOpenError), search.call():
            raise ConnectionError
    time.sleep(1.5)  # refused calls are one line a second


if __name__ == "__main__":
    main()
