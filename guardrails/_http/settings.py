"""Defines each setting of the middlewares and the status pages once: its name, default and check.

Depends on the core and on guards; must not import what the settings configure.
"""

# ruff: noqa: RUF009 - `_setting` is a call of `dataclasses.field`
from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Literal, Self, TypeVar

from guardrails._core.criticality import CLASSES
from guardrails._guard.guard import Guard
from guardrails._http.answers import DEADLINE_HEADERS
from guardrails._http.paths import ALLOWED, is_path
from guardrails._runtime.scope import Clock
from guardrails._util.checks import Faults, unknown_option

__all__ = ["HTTPSettings", "StatusSettings", "checked_guards"]

T = TypeVar("T")


# --- checks: each notes what is wrong with a value, and returns the value in the form the code reads ------


def _as_given(check: Callable[..., None], **rules: Any) -> Callable[[Faults, str, Any], Any]:
    def checked(faults: Faults, name: str, value: Any) -> Any:
        check(faults, name, value, **rules)
        return value

    return checked


def _items_of(value: object) -> tuple[object, ...] | None:
    # Reject str: iterating it would yield characters.
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, (str, bytes)) else None


def checked_guards(faults: Faults, name: str, value: object, *, least: int = 0) -> tuple[Guard, ...]:
    """Returns the guards that a setting lists, and notes an item that is not a guard, or too few items."""
    items = _items_of(value)
    guards = tuple(item for item in items or () if isinstance(item, Guard))
    wanted = "a list of Guard objects"
    if items is None:
        faults.add(name, value, wanted, ": put it into brackets" if isinstance(value, Guard) else "")
    elif len(guards) != len(items):
        odd = next(item for item in items if not isinstance(item, Guard))
        faults.add(name, odd, wanted, " in it")
    elif len(items) < least:
        faults.add(name, value, f"{wanted}, at least {least}", ": it is empty")
    return guards


def _guards_by_path(faults: Faults, name: str, value: object) -> dict[str, tuple[Guard, ...]]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        if _items_of(value) is None:
            faults.add(name, value, "guards for every path, or a dict of paths and guards, or None")
            return {}
        guards = checked_guards(faults, name, value)
        return {"/": guards} if guards else {}
    return {
        _path(faults, name, path): checked_guards(faults, f"{name}[{path!r:.80}]", guards)
        for path, guards in value.items()
    }


def _paths(faults: Faults, name: str, value: object) -> tuple[str, ...]:
    items = _items_of(value)
    if items is None:
        faults.add(name, value, "a list of paths")
    return tuple(_path(faults, name, item) for item in items or ())


def _path(faults: Faults, name: str, value: object) -> str:
    if isinstance(value, str) and is_path(value):
        return value
    faults.add(name, value, ALLOWED)
    return "/"


def _deadline_headers(faults: Faults, name: str, value: object) -> tuple[str, ...]:
    items = _items_of(value)
    if items is None:
        faults.add(name, value, "a list of header names")
    headers = []
    for item in items or ():
        headers.append(item.lower() if isinstance(item, str) else "")
        if headers[-1] not in DEADLINE_HEADERS:
            faults.add(name, item, "one of " + ", ".join(DEADLINE_HEADERS))
    return tuple(headers)


def _ranks(faults: Faults, name: str, value: object) -> dict[str, int]:
    if not isinstance(value, Mapping | None):
        faults.add(name, value, "a dict of paths and classes, or None")
        value = None
    ranks = {}
    for path, criticality in (value or {}).items():
        if not is_path(path):
            faults.add(name, path, ALLOWED)
            continue
        faults.choice(f"{name}[{path!r:.80}]", criticality, CLASSES)
        ranks[path] = CLASSES.index(criticality) if criticality in CLASSES else 0
    return ranks


def _header(faults: Faults, name: str, value: object) -> str | None:
    if value is None or (isinstance(value, str) and value and value.isascii()):
        return None if value is None else value.lower()
    faults.add(name, value, "the name of a header, or None")
    return None


def _flag_or_all(faults: Faults, name: str, value: object) -> bool | Literal["all"]:
    if isinstance(value, bool) or value == "all":
        return value
    faults.add(name, value, "True (for GET, HEAD, OPTIONS and TRACE), 'all' or False")
    return False


_flag = _as_given(Faults.flag)
_callable = _as_given(Faults.callable, none=False)


# --- settings ----------------------------------------------------------------------------------------


def _setting(default: object, check: Callable[[Faults, str, Any], T]) -> T:
    """Declares a field by the default that a user sees and the check of what a user gives."""
    declared: Any = field(default=default, metadata={"check": check})
    return declared  # type: ignore[no-any-return]  # of the field, as dataclasses have it


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    @classmethod
    def checked(cls, faults: Faults, given: Mapping[str, Any]) -> Self:
        """Checks the settings among the names given, and takes the default of each one that is not there.

        Raises:
            ConfigurationError: One or more values are wrong; all faults are named at once.
        """
        values = {
            each.name: each.metadata["check"](faults, each.name, given.get(each.name, each.default))
            for each in fields(cls)
        }
        faults.raise_if_any()
        return cls(**values)

    @classmethod
    def refuse_unknown(cls, where: str, given: Iterable[object], *, without: tuple[str, ...]) -> None:
        """Raises ConfigurationError for the first name that is not a setting, or is one of ``without``."""
        known = [each.name for each in fields(cls) if each.name not in without]
        for name in given:
            if name not in known:
                raise unknown_option(where, name, known)


@dataclass(frozen=True, slots=True, kw_only=True)
class HTTPSettings(_Settings):
    """The settings of one middleware, checked. Each middleware has most of them.

    Attributes:
        guards: The guards whose refusals and timeouts are answered; empty means every guard.
        requires: By path or template, the guards without which a request cannot be served.
        learn_routes: Whether to learn which guards a route needs.
        exempt: The paths and templates to which neither ``requires`` nor ``max_in_flight`` applies.
        request_timeout: Seconds from the arrival of a request to its first byte, or None.
        deadline_headers: The request headers, in lower case, that can lower the ``request_timeout``.
        max_in_flight: The number of requests that may be inside at once, or None.
        server_timing: Whether to add a ``Server-Timing`` header.
        cancel_on_disconnect: The requests whose work ends when the client leaves: True for those of safe
            methods, ``"all"``, or False for none.
        threads: The number of concurrent requests of the server, or None.
        criticality: The rank of a request by path or template.
        criticality_header: The request header, in lower case, that gives the class of a request, or None.
        clock: A monotonic clock in seconds.
        random: A source of floats in [0, 1) for the jitter of ``Retry-After``.
    """

    guards: tuple[Guard, ...] = _setting((), checked_guards)
    requires: Mapping[str, tuple[Guard, ...]] = _setting(None, _guards_by_path)
    learn_routes: bool = _setting(True, _flag)
    exempt: tuple[str, ...] = _setting((), _paths)
    request_timeout: float | None = _setting(None, _as_given(Faults.seconds, none=True))
    deadline_headers: tuple[str, ...] = _setting((), _deadline_headers)
    max_in_flight: int | None = _setting(None, _as_given(Faults.count, none=True))
    server_timing: bool = _setting(False, _flag)
    cancel_on_disconnect: bool | Literal["all"] = _setting(False, _flag_or_all)
    threads: int | None = _setting(None, _as_given(Faults.count, least=2, none=True))
    criticality: Mapping[str, int] = _setting(None, _ranks)
    criticality_header: str | None = _setting(None, _header)
    clock: Clock = _setting(time.monotonic, _callable)
    random: Callable[[], float] = _setting(random.random, _callable)


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusSettings(_Settings):
    """The settings of the status pages, checked.

    Attributes:
        guards: The guards to show.
        auth: Allows a request to change the state of a guard; None allows none.
        stuck_after: Seconds without a returned slot after which a full guard makes the process unready.
        clock: A monotonic clock in seconds.
    """

    guards: tuple[Guard, ...] = _setting((), partial(checked_guards, least=1))
    auth: Callable[[Any], Any] | None = _setting(None, _as_given(Faults.callable))
    stuck_after: float = _setting(30.0, _as_given(Faults.seconds))
    clock: Clock = _setting(time.monotonic, _callable)
