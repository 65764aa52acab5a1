"""``guardrails demo``: runs one app twice, with and without guards, under one fault.

Depends on the library's public names alone. Importing this package imports none of its extras;
`guardrails.cli.demo` names a missing one.
"""
