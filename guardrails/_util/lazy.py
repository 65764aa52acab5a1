"""Names of a package that are imported when they are asked for."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # see the package's own module
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

__all__ = ["on_use"]


def on_use(package: str, homes: Mapping[str, str | None], missing: str | None = None) -> Callable[[str], Any]:
    """Makes a package's ``__getattr__`` (PEP 562).

    Args:
        package: The package's own name.
        homes: The module that has each name; None for a name that is a module of the package.
        missing: What to say where a module cannot be imported for want of another.
    """

    def __getattr__(name: str) -> Any:  # noqa: N807 - what Python calls it
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
