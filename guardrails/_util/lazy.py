"""Imports the names of a package on first use. Depends on nothing."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # see guardrails/__init__.py
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

__all__ = ["on_use"]


def on_use(package: str, homes: Mapping[str, str | None], missing: str | None = None) -> Callable[[str], Any]:
    """Makes a module ``__getattr__`` for a package (PEP 562).

    Args:
        package: The name of the package.
        homes: The module of each name; None for a name that is itself a module of the package.
        missing: The message of the ImportError if an optional dependency is not installed; None raises the
            original error.
    """

    def __getattr__(name: str) -> Any:  # noqa: N807 - the name is PEP 562's
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            home = homes[name] or f"{package}.{name}"
            __import__(home)
            value = sys.modules[home] if homes[name] is None else getattr(sys.modules[home], name)
        except ImportError as error:
            if missing is None:
                raise
            raise ImportError(missing) from error
        setattr(sys.modules[package], name, value)
        return value

    return __getattr__
