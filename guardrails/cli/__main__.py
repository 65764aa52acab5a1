"""``python -m guardrails.cli``, for environments without the script on the path."""

from guardrails.cli import main

main()
