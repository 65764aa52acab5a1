"""Settings of guards from environment variables, such as ``GUARDRAILS_ORDERS_DB_TIMEOUT``.

Depends on checks and policies; must not import guards. A variable fills a setting that the code left at its
default. A setting with another value wins over the variable.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from guardrails._core.policy import BreakerPolicy
from guardrails._core.shadow import MODES, Mode
from guardrails._guard.mode import VARIABLE
from guardrails._runtime.fork import ForkedLock
from guardrails._runtime.guard_log import log
from guardrails._util.checks import Faults
from guardrails._util.names import fields_of
from guardrails._util.texts import read_number
from guardrails.errors import ConfigurationError

__all__ = [
    "fill_from_environment",
    "fill_pool_options",
    "log_mode",
    "mode_from_environment",
    "prefix_of",
    "unused_variables",
    "variable_of",
]

Check = Callable[[Faults, str, Any], None]


def _seconds(**how: bool) -> Check:
    return lambda faults, field, value: faults.seconds(field, value, **how)


def _count(**how: Any) -> Check:
    return lambda faults, field, value: faults.count(field, value, **how)


def _number(least: float, most: float) -> Check:
    return lambda faults, field, value: faults.number(field, value, least, most)


def _mode(faults: Faults, field: str, value: object) -> None:
    faults.choice(field, value, MODES)


_GUARD: dict[str, Check] = {
    "max_wait_duration": _seconds(zero=True),
    "max_waiting": _count(least=0, none=True),
    "mode": _mode,
    "timeout": _seconds(none=True),
}
_POLICY: dict[str, Check] = {
    "failure_rate_threshold": Faults.rate,
    "slow_call_rate_threshold": Faults.rate,
    "slow_call_duration_threshold": _seconds(),
    "sliding_window_size": _number(0.001, 10**9),
    "minimum_number_of_calls": _count(),
    "wait_duration_in_open_state": _seconds(zero=True),
    "open_backoff_multiplier": _number(1, 1000),
    "max_wait_duration_in_open_state": _seconds(),
    "open_jitter": _number(0, 1),
    "permitted_calls_in_half_open_state": _count(),
    "max_wait_duration_in_half_open_state": _seconds(),
    "recovery_ramp": _seconds(zero=True),
    "consecutive_failures": _count(none=True),
}
_POOL: dict[str, Check] = {
    "idle_timeout": _seconds(none=True),
    "keepalive": _seconds(none=True),
    "max_concurrent_calls": _count(),
    "max_lifetime": _seconds(none=True),
    "minimum_idle": _count(least=0),
}
"""The settings of a guard in front of a pool that `guardrails.protect` takes."""

_WORDS = {field.upper(): field for field in (*_GUARD, *_POLICY, *_POOL)}
"""The settings by the last words of their variables."""

_NEAR = 0.6
"""How similar a name must be to be the one that was meant, from 0 to 1."""

_VERY_NEAR = 0.8
"""Likewise, where the variable may belong to another program."""

_OF_KUBERNETES = re.compile(r"(SERVICE_HOST|SERVICE_PORT|PORT)(_\w+)?")
"""The last words of what Kubernetes sets in each container, here for a Service ``guardrails-db``."""

_lock = ForkedLock()
_users: dict[str, str] = {}
"""The guard that uses the variables with a prefix."""

_warned: set[str] = set()
"""The variables without effect that have been logged."""


def prefix_of(name: str) -> str:
    """Returns the beginning of a guard's variables.

    It is the guard's name in capitals, with ``_`` for each character that is no letter or digit.
    """
    return f"GUARDRAILS_{re.sub('[^A-Z0-9]', '_', name.upper())}_"


def variable_of(name: object, field: str, value: object) -> str:
    """The variable that has given a setting this value; the setting's own name if none has."""
    variable = prefix_of(str(name)) + field.upper()
    return variable if read_number(os.environ.get(variable, "none")) == value is not None else field


def unused_variables() -> list[str]:
    """Returns the variables that set something of a guard which this process has not made so far.

    The guard's name is misspelt, or it is a guard of another process with the same environment.
    """
    return sorted(
        key
        for key in os.environ
        if key.startswith("GUARDRAILS_")
        and os.environ.get(key)
        and _ends_in_a_setting(key)
        and key != VARIABLE
        and not any(key.startswith(prefix) and key[len(prefix) :] in _WORDS for prefix in list(_users))
    )


def fill_from_environment(
    name: object, settings: dict[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns a guard's settings, filled from the environment where they have their default.

    Args:
        name: The guard's name.
        settings: The settings by name, ``breaker`` among them.
        defaults: The defaults of those that may be filled.

    Raises:
        ConfigurationError: A variable is wrong; the message names it.
    """
    values = _values(name, {**_GUARD, **_POLICY})
    _warn_of_no_effect(name)
    if not values:
        return settings
    found = {
        field: values[field]
        for field, default in defaults.items()
        if field in values and settings[field] == default
    }
    policy = settings["breaker"]
    if isinstance(policy, BreakerPolicy):
        rules = {
            field.name: values[field.name]
            for field in fields(policy)
            if field.name in values and getattr(policy, field.name) == field.default
        }
        _log(name, rules)
        kept = {field.name: getattr(policy, field.name) for field in fields(policy)}
        settings = {**settings, "breaker": BreakerPolicy(**{**kept, **rules})}
    _log(name, found)
    return {**settings, **found}


def mode_from_environment(name: object) -> Mode | None:
    """Returns the mode in a guard's own variable; None without one.

    Raises:
        ConfigurationError: It is no mode.
    """
    return _values(name, {"mode": _mode}).get("mode")


def log_mode(name: str, own: Mode, mode: Mode) -> None:
    """Logs the effect of the mode in a guard's own variable."""
    if mode == own:
        _log(name, {"mode": own})
    else:
        variable = f"{prefix_of(name)}MODE"
        words = "guard %r: its mode is %s; %s=%s has no effect"
        log.warning(words, name, mode, variable, own, extra=fields_of(name))


def fill_pool_options(name: object, options: dict[str, Any]) -> None:
    """Adds settings from the environment to the options of `guardrails.protect` that have their default.

    Raises:
        ConfigurationError: A variable is wrong; the message names it.
    """
    values = _values(name, _POOL)
    found = {field: value for field, value in values.items() if not options.get(field)}
    _log(name, found)
    options.update(found)


def _log(name: object, values: Mapping[str, Any]) -> None:
    for field, value in values.items():
        variable = prefix_of(str(name)) + field.upper()
        words = "guard %r: %s is %s by the environment variable %s"
        log.info(words, name, field, value, variable, extra=fields_of(str(name)))


def _values(name: object, settings: Mapping[str, Check]) -> dict[str, Any]:
    """Returns the values of a guard's variables for some settings."""
    if not isinstance(name, str):
        return {}
    prefix = prefix_of(name)
    found = {
        key.removeprefix(prefix): text for key, text in os.environ.items() if key.startswith(prefix) and text
    }
    if not found:
        return {}
    for word in sorted(found.keys() - _WORDS.keys()):
        _check_unknown(name, prefix, word)
    used = {_WORDS[word]: text for word, text in found.items() if word in _WORDS}
    if used:
        _claim(name, prefix)
    faults = Faults(f"guard {name!r}: environment")
    values = {field: read_number(text) for field, text in used.items() if field in settings}
    for field, value in values.items():
        settings[field](faults, prefix + field.upper(), value)
    faults.raise_if_any()
    return values


def _check_unknown(name: str, prefix: str, word: str) -> None:
    """Refuses a variable that is no setting: a misspelt one would have no effect, unnoticed.

    One that ends in a setting may belong to a guard with a longer name: ``GUARDRAILS_DB_EU_TIMEOUT``.
    """
    if _ends_in_a_setting(word) or _OF_KUBERNETES.fullmatch(word):
        return
    near = difflib.get_close_matches(word, _WORDS, n=1, cutoff=_NEAR)
    hint = f"did you mean {prefix}{near[0]}?" if near else f"after {prefix} may come {', '.join(_WORDS)}"
    raise ConfigurationError(f"guard {name!r}: environment: no setting is {prefix}{word}; {hint}")


def _ends_in_a_setting(word: str) -> bool:
    return any(word.endswith(f"_{each}") for each in _WORDS)


def _warn_of_no_effect(name: object) -> None:
    """Logs once each variable that is a setting without a guard, or a misspelt mode of all guards."""
    for key in sorted(os.environ):
        word = key.removeprefix("GUARDRAILS_")
        if word in {key, "MODE"}:
            continue
        if word in _WORDS:
            meant = f"{prefix_of(str(name))}{word}"
        elif _ends_in_a_setting(word) or not difflib.get_close_matches(word, ["MODE"], cutoff=_VERY_NEAR):
            continue
        else:
            meant = VARIABLE
        with _lock:
            known = key in _warned
            _warned.add(key)
        if not known:
            log.warning("the environment variable %s has no effect; did you mean %s?", key, meant)


def _claim(name: str, prefix: str) -> None:
    """Refuses a second guard whose name leads to the same variables."""
    with _lock:
        user = _users.setdefault(prefix, name)
    if user != name:
        raise ConfigurationError(
            f"guard {name!r}: environment: the variables {prefix}... belong to the guard {user!r} as well; "
            "rename one of the two"
        )
