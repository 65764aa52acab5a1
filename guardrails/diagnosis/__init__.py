"""Asks servers and services about their connections, and judges the answers. For ``guardrails`` commands."""
