"""The library's own threads. Depends on nothing of ours."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextvars import Context
from typing import Any

__all__ = ["daemon"]


def daemon(name: str, target: Callable[..., object], *args: object) -> threading.Thread:
    """Makes a daemon thread that runs in an empty context; the caller starts it.

    On a free-threaded build, and with ``-X thread_inherit_context=1``, a new thread runs in a copy of its
    starter's context. A thread of ours would then obey the deadline of the request that started it, and
    keep that request in memory.

    Args:
        name: The thread's name.
        target: What it runs.
        *args: Its arguments.
    """
    empty: dict[str, Any] = {"context": Context()} if sys.version_info >= (3, 14) else {}
    return threading.Thread(target=target, args=args, daemon=True, name=name, **empty)
