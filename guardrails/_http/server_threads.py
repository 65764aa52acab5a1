"""Compares the slots of the guards with the threads of a WSGI server. Must not import a server."""

from __future__ import annotations

import logging

from guardrails._util.checks import Faults

__all__ = ["check_threads"]

_log = logging.getLogger("guardrails")


def check_threads(threads: int, slots: int, max_in_flight: int | None) -> None:
    """Logs a warning if calls that hang could take every thread of the server.

    Args:
        threads: The number of concurrent requests of the server.
        slots: The slots of all named guards; 0 if none is named.
        max_in_flight: The number of requests that may be inside at once, or None.

    Raises:
        ConfigurationError: No guard is named.
    """
    if not slots:
        faults = Faults("GuardrailsMiddleware")
        faults.add("guards", (), "named where threads is given, so that their slots can be compared with it")
        faults.raise_if_any()
    if min(slots, max_in_flight or slots) >= threads:
        _log.warning(
            "GuardrailsMiddleware: the guards have %d slots and the server has %d threads, so calls that "
            "hang may take every thread, and then nothing is answered: give the guards fewer slots in all, "
            "the server more threads, or set max_in_flight below %d",
            slots,
            threads,
            threads,
        )
