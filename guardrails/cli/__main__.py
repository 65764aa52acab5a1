"""``python -m guardrails.cli``, for where the script is not on the path; knows nothing else."""

from guardrails.cli import main

main()
