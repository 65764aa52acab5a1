"""Finds the databases of a Django project, and what is wrong with its settings.

Depends on the settings of a service that has imported Django; must not connect to a server.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from guardrails._guard.guard import Guard
from guardrails._http.policy import WithPolicy
from guardrails.diagnosis.findings import Finding
from guardrails.errors import ConfigurationError

__all__ = ["Database", "Databases", "has_databases", "middleware"]


@dataclass(frozen=True)
class Database:
    """One guarded alias of ``DATABASES``.

    Attributes:
        alias: The alias.
        address: The kind of its server, the host and the port; None is a default.
        pool: The most connections of its pool in each process; None without a pool, or without a limit.
        kept: Whether each thread keeps a connection between requests.
    """

    alias: str
    address: tuple[str, str | None, int | None]
    pool: int | None
    kept: bool


class Databases:
    """The aliases of ``DATABASES``; none if the process has no Django.

    Attributes:
        guarded: Each alias that has a guard, with the guard.
        bare: A line for each other one.
    """

    def __init__(self) -> None:
        self.guarded: list[tuple[Database, Guard]] = []
        self.bare: list[str] = []
        for alias, engine in _engines():
            name = f"database {alias!a} of Django ({engine})"
            try:
                found = _guarded(alias, engine)
            except ConfigurationError as error:  # its messages hold no secrets
                self.bare.append(f"{name}: {error}")
            except Exception as error:  # noqa: BLE001 - a backend's module, or its driver, may raise anything
                self.bare.append(f"{name}: {type(error).__name__}")
            else:
                if found is None:
                    self.bare.append(name)
                else:
                    self.guarded.append(found)

    def findings(self) -> Iterator[Finding]:
        """Yields the databases without a guard."""
        if self.bare:
            yield Finding(
                "unguarded",
                f"configured and not protected: {len(self.bare)}",
                tuple(self.bare),
                "ENGINE = 'guardrails.integrations.django.postgresql' or '....mysql', and OPTIONS = "
                "{'guard': ...}; without such a backend @guarded around the functions; see "
                "docs/guides/django.md",
            )


def has_databases() -> bool:
    """Returns True if the process has Django, and that has a database."""
    return any(True for _ in _engines())


def _settings() -> Any:
    django = sys.modules.get("django.conf")
    return django.settings if django is not None and django.settings.configured else None


def _engines() -> Iterator[tuple[str, str]]:
    """Yields each alias with the name of its backend; one without a backend is a place-holder."""
    settings = _settings()
    for alias, entry in (settings.DATABASES if settings is not None else {}).items():
        if entry.get("ENGINE"):
            yield alias, entry["ENGINE"]


def _guarded(alias: str, engine: str) -> tuple[Database, Guard] | None:
    """Returns an alias with its guard, None without one. Makes its connection object, which opens nothing."""
    from django.db import connections  # noqa: PLC0415 - of the service
    from django.db.utils import load_backend  # noqa: PLC0415 - likewise

    from guardrails.integrations.django._database.registry import guard_of_alias  # noqa: PLC0415 - with it
    from guardrails.integrations.django._database.wrapper import GuardedWrapper  # noqa: PLC0415 - likewise

    if not issubclass(load_backend(engine).DatabaseWrapper, GuardedWrapper):
        return None
    wrapper: Any = connections[alias]
    guard = guard_of_alias(alias)
    if guard is None:
        return None
    entry, kind = wrapper.settings_dict, wrapper.kind
    pool = kind.size_of(entry["OPTIONS"])
    address = (kind.system, entry["HOST"] or None, int(entry["PORT"]) if entry["PORT"] else None)
    kept = entry["CONN_MAX_AGE"] != 0 and not entry["OPTIONS"].get("pool")
    return Database(alias, address, pool, kept), guard


def middleware() -> Iterator[Finding]:
    """Yields what is wrong with the place of our middleware in ``MIDDLEWARE``."""
    settings = _settings()
    if settings is None:
        return
    listed = list(settings.MIDDLEWARE or ())
    places = [place for place, name in enumerate(listed) if str(name).startswith("guardrails.")]
    if places and places[0] > 0:
        yield Finding(
            "middleware_order",
            "settings.MIDDLEWARE has others before GuardrailsMiddleware: their refusals become status 500",
            tuple(str(name) for name in listed[: places[0]]),
            "GuardrailsMiddleware first",
        )
    # A subclass has another name, and the middlewares for WSGI and ASGI stand around the whole application.
    if not places and not any(issubclass(type(each), WithPolicy) for each in gc.get_objects()):
        yield Finding(
            "no_middleware",
            "refusals and timeouts become status 500: settings.MIDDLEWARE has no GuardrailsMiddleware",
            (),
            "'guardrails.integrations.django.GuardrailsMiddleware' first in MIDDLEWARE; see "
            "docs/guides/django.md",
        )
