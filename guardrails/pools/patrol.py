"""One daemon thread that looks in at pools from time to time; see `guardrails._patrol`."""

from guardrails._patrol import look_in

__all__ = ["look_in"]
