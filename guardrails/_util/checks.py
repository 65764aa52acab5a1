"""Checks settings and reports every fault in one error. Depends on errors; must not import guards."""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Callable, Iterable
from datetime import timedelta
from numbers import Number, Real

import guardrails._util.identity  # noqa: F401 - checked first, as each part imports this module
from guardrails._util.texts import with_article
from guardrails.errors import ConfigurationError

__all__ = ["Faults", "finite", "refuse_unknown", "shown", "unknown_option"]

_LONGEST = 10**9
"""Largest number of seconds (about thirty years) or calls. Keeps sums finite and lock timeouts legal."""

_SHOWN = 40
"""Largest number of characters of a value in a message."""

_ADDRESS = re.compile(r"://|:[^@\s]*@|\b\w*(password|passwd|pwd|secret|token|host|dsn)\w*\s*=", re.IGNORECASE)
"""Matches a URL, ``user:password@host`` and the ``key=value`` form of libpq and ODBC."""


def finite(value: object) -> bool:
    """True for a real number other than a bool, NaN and infinity."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def unknown_option(where: str, name: object, known: Iterable[str]) -> ConfigurationError:
    """Builds the error for an unknown option. It names the nearest option."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1) if isinstance(name, str) else []
    hint = f"; did you mean {near[0]!r}?" if near else f"; the options are {', '.join(names)}"
    return ConfigurationError(f"{where} has no option {shown(name)}{hint}")


def shown(value: object) -> str:
    """Formats a value for a message: at most `_SHOWN` characters, and none of a str that may be an address.

    The ``repr`` of an engine, a client or a URL may hold a host or a password. So may a str passed by
    mistake.
    """
    if isinstance(value, type):
        return f"the class {_cut(value.__name__)}"
    if not isinstance(value, str | bytes | Number | timedelta | None):
        return with_article(_cut(type(value).__name__))
    if isinstance(value, str | bytes):
        text = value if isinstance(value, str) else value.decode("latin-1")
        if _ADDRESS.search(text):
            return "a URL" if "://" in text else "a text that looks like an address or a password"
        return repr(value) if len(value) <= _SHOWN else f"{value[:_SHOWN]!r}..."
    return _cut(repr(value))  # 10**400 must not fill a screen


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def refuse_unknown(where: str, given: Iterable[str], function: Callable[..., object]) -> None:
    """Raises ConfigurationError for the first name in ``given`` that is not a parameter of ``function``."""
    for name in given:
        parameters = inspect.signature(function).parameters.values()
        known = [
            each.name for each in parameters if each.kind is not each.VAR_KEYWORD and each.name != "self"
        ]
        if name not in known:
            raise unknown_option(where, name, known)


class Faults:
    """Collects the faults of one object's settings and reports them in one error."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._found: list[str] = []

    def add(self, field: str, value: object, allowed: str, hint: str = "") -> None:
        """Adds a fault."""
        self._found.append(f"{field} must be {allowed}, got {shown(value)}{hint}")

    def seconds(self, field: str, value: object, *, zero: bool = False, none: bool = False) -> None:
        """Checks a duration: a finite number of seconds above 0, or from 0 if ``zero``."""
        allowed = f"a number of seconds {'from 0' if zero else 'above 0'} up to {_LONGEST}" + (
            ", or None" if none else ""
        )
        if value is None and none:
            return
        if not finite(value) or not (0 <= float(value) <= _LONGEST) or (value == 0 and not zero):  # type: ignore[arg-type]
            self.add(field, value, allowed)

    def rate(self, field: str, value: object) -> None:
        """Checks a fraction in (0, 1]. The error for a percentage gives the fraction."""
        if finite(value) and 0 < float(value) <= 1:  # type: ignore[arg-type]
            return
        percent = finite(value) and 1 < float(value) <= 100  # type: ignore[arg-type] # noqa: PLR2004
        hint = f" (rates are fractions: write {float(value) / 100:g})" if percent else ""  # type: ignore[arg-type]
        self.add(field, value, "a fraction in (0, 1]", hint)

    def count(
        self,
        field: str,
        value: object,
        *,
        least: int = 1,
        most: int | None = None,
        none: bool = False,
        why: str = "",
    ) -> None:
        """Checks an int from ``least`` to ``most``, by default the largest number allowed.

        The error ends with ``why``.
        """
        if value is None and none:
            return
        top = _LONGEST if most is None else most
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= top:
            allowed = f"a whole number from {least} to {top}" + (", or None" if none else "")
            self.add(field, value, allowed, why)

    def number(self, field: str, value: object, least: float, most: float) -> None:
        """Checks a finite number in ``[least, most]``."""
        if not finite(value) or not least <= float(value) <= most:  # type: ignore[arg-type]
            self.add(field, value, f"a number in [{least:g}, {most:g}]")

    def choice(self, field: str, value: object, allowed: tuple[str | None, ...]) -> None:
        """Checks that a value is one of ``allowed``."""
        if value not in allowed:
            self.add(field, value, " or ".join(map(repr, allowed)))

    def flag(self, field: str, value: object) -> None:
        """Checks that a value is True or False."""
        if not isinstance(value, bool):
            self.add(field, value, "True or False")

    def callable(self, field: str, value: object, *, none: bool = True) -> None:
        """Checks that a value can be called."""
        if not callable(value) and not (none and value is None):
            self.add(field, value, "callable" + (" or None" if none else ""))

    def raise_if_any(self) -> None:
        """Raises one ConfigurationError with all faults, if there are any."""
        if self._found:
            raise ConfigurationError(f"{self._where}: " + "; ".join(self._found))
