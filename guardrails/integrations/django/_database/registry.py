"""The protections of this process, one for each guard. Must not import a driver."""

from __future__ import annotations

from typing import Any

from django.db import connections
from django.utils.connection import ConnectionDoesNotExist

from guardrails._guard.compartments import set_compartments
from guardrails._guard.guard import Guard, attach, lease_of
from guardrails._runtime.fork import ForkedLock
from guardrails._util.checks import shown
from guardrails.errors import ConfigurationError
from guardrails.integrations.django._database.options import read_options
from guardrails.integrations.django._database.protection import Protection

__all__ = ["guard_of_alias", "protect"]

_lock = ForkedLock()
_protections: dict[Guard, Protection] = {}


def protect(kind: type[Protection], alias: str, settings: dict[str, Any]) -> Protection:
    """The protection that an alias asks for in its ``OPTIONS``; the first to ask attaches the guard.

    Args:
        kind: The kind of the database.
        alias: The alias.
        settings: Its entry in ``DATABASES``.

    Raises:
        ConfigurationError: The options are wrong.
    """
    where = f"DATABASES[{alias!r}]"
    guard, options = read_options(where, settings["OPTIONS"])
    most = kind.size_of(settings["OPTIONS"])
    least = kind.least_of(settings["OPTIONS"])
    if lease_of(guard) is not None and least != 0:
        raise ConfigurationError(
            f"{where}: OPTIONS['pool']['min_size'] must be 0, got {shown(least)}: its guard has a part of a "
            "fleet's budget, and the pool would keep that many connections open whatever the lease is"
        )
    with _lock:
        protection = _protections.get(guard)
        if type(protection) is kind:
            options.check_equal(where, guard, protection.options)
            protection.check(alias, most)
            return protection
        if protection is not None or guard.call_settings.attached:
            raise ConfigurationError(f"{where}: guard {guard.name!r} protects something else already")
        protection = kind(guard, options)
        protection.check(alias, most)
        _protections[guard] = protection
        set_compartments(guard, options.compartments)
        attach(guard, protection)
    return protection


def guard_of_alias(alias: str) -> Guard | None:
    """Returns the guard of a database; None without one."""
    try:
        wrapper: Any = connections[alias]
    except ConnectionDoesNotExist:
        return None
    protection: Protection | None = getattr(wrapper, "_protection", None)
    return None if protection is None or not protection.on else protection.guard
