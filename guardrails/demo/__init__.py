"""``guardrails demo``: one app twice, one fault, and what each of the two makes of it.

Knows no part of the library that a user does not know. Importing this package imports none of its
extras; `guardrails.cli.demo` says which one is missing.
"""
