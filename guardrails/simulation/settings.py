"""The settings of a simulated guard, from TOML files and from texts such as ``slots=10``."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from guardrails._core.policy import BreakerPolicy
from guardrails._guard.guard_settings import DEFAULTS, check_settings
from guardrails._util.checks import Faults, shown, unknown_option
from guardrails._util.texts import read_flag, read_number
from guardrails.errors import ConfigurationError

__all__ = ["Policy", "read_policies"]

_COMPARTMENTS = ("auto", "none")
_CALLABLES = {"is_failure", "is_failure_result"}
_BREAKER = tuple(each.name for each in fields(BreakerPolicy) if each.name not in _CALLABLES)
_NAMES = ("max_concurrent_calls", *DEFAULTS, "compartments", "breaker")
_SLOTS = {"slots", "max_concurrent_calls"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The settings of one guard of a pool, with the names and defaults of ``protect``.

    Attributes:
        label: Its name in tables.
        max_concurrent_calls: Slots.
        max_wait_duration: Longest wait for a slot in seconds.
        max_waiting: Maximum number of waiting callers; None is the number of slots.
        timeout: Seconds after which a call is stopped; None is unbounded.
        compartments: ``"auto"``: one for each route; ``"none"``.
        breaker: The circuit's rules; None is no circuit.

    Raises:
        ConfigurationError: One or more are wrong; all faults are named at once.
    """

    label: str = "policy"
    max_concurrent_calls: int
    max_wait_duration: float = 0.05
    max_waiting: int | None = None
    timeout: float | None = 5.0
    compartments: str = "auto"
    breaker: BreakerPolicy | None = field(default_factory=BreakerPolicy)

    def __post_init__(self) -> None:
        faults = Faults("policy")
        faults.choice("compartments", self.compartments, _COMPARTMENTS)
        faults.raise_if_any()
        settings = {
            "max_wait_duration": self.max_wait_duration,
            "max_waiting": self.max_waiting,
            "timeout": self.timeout,
            "breaker": self.breaker,
            "listeners": (),
            "clock": float,
            "random": float,
        }
        check_settings("policy", self.max_concurrent_calls, None, settings)

    @classmethod
    def of(cls, label: str, settings: Mapping[str, Any]) -> Policy:
        """Makes a policy of settings by their names; ``breaker`` is a mapping, or None for no circuit.

        Raises:
            ConfigurationError: A name is unknown, a value is wrong, or the number of slots is missing.
        """
        given = dict(settings)
        if "slots" in given:
            if "max_concurrent_calls" in given:
                raise ConfigurationError(
                    f"policy {label!r}: slots is another name of max_concurrent_calls; give one"
                )
            given["max_concurrent_calls"] = given.pop("slots")
        for name in given:
            if name not in _NAMES:
                raise unknown_option(f"policy {label!r}:", name, ("slots", *_NAMES))
        if "max_concurrent_calls" not in given:
            raise ConfigurationError(
                f"policy {label!r}: the number of slots is missing: max_concurrent_calls, or slots=10"
            )
        rules = given.pop("breaker", {})
        if isinstance(rules, Mapping):
            for name in rules:
                if name not in _BREAKER:
                    raise unknown_option(f"policy {label!r}: breaker", name, _BREAKER)
            rules = BreakerPolicy(**rules)
        return cls(label=label, breaker=rules, **given)


def read_policies(policies: Iterable[str], changes: Iterable[str]) -> list[Policy]:
    """Reads the policies of a command.

    Args:
        policies: For each the name of a TOML file, or settings such as ``slots=10,timeout=2``. None at all is
            one policy of nothing but ``changes``.
        changes: Settings such as ``breaker.minimum_number_of_calls=5`` that each policy gets as well.

    Raises:
        ConfigurationError: A policy is wrong, or a file cannot be read.
    """
    changes, found = list(changes), list(policies)
    if not found:
        return [_policy(", ".join(changes), {}, changes)]
    return [
        _policy(text, {}, [*text.split(","), *changes])
        if "=" in text
        else _policy(Path(text).stem, _read_file(text), changes)
        for text in found
    ]


def _policy(label: str, settings: dict[str, Any], changes: Iterable[str]) -> Policy:
    for change in changes:
        name, equals, text = change.strip().partition("=")
        if not equals or not name:
            raise ConfigurationError(f"policy: {shown(change)} must be NAME=VALUE, such as slots=10")
        value: Any = text.strip() if name == "compartments" else read_number(text)
        if name == "breaker" and isinstance(value, str):
            value = read_flag(value)
        outer, dot, inner = name.partition(".")
        if not dot:
            if name in _SLOTS:  # the last one counts, by whichever name
                settings = {key: value for key, value in settings.items() if key not in _SLOTS}
            settings[name] = None if name == "breaker" and value is False else value
        elif isinstance(settings.get(outer, {}), dict):
            settings[outer] = {**settings.get(outer, {}), inner: value}
        else:
            raise ConfigurationError(f"policy {label!r}: {name} has no effect with {outer}=none")
    return Policy.of(label, settings)


def _read_file(path: str) -> dict[str, Any]:
    try:
        with Path(path).open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigurationError(f"policy {shown(path)}: {error.strerror or 'it cannot be read'}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"policy {shown(path)}: this is no TOML ({error})") from None
