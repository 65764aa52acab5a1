"""What a contender is, and the settings they share. Knows no library."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

NEVER = 10**9
"""A number of failures that no run reaches: the circuit stays closed while calls raise."""

AN_HOUR = 3600
"""Longer than any run: a circuit that opened stays open."""

SLOTS = 100

OURS = "guardrails-db"

Ways = Mapping[tuple[str, str], Callable[..., Any]]
"""By ``(flavour, form)``: the decorator, the ``run`` function, or what makes the context manager."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A library, or a part of ours.

    Attributes:
        name: Its row in the tables.
        distribution: Where its version comes from; None needs nothing installed.
        make: A fresh instance for calls that end ``closed``, ``raising`` or ``rejected``.
        ways: How an instance is used.
        refusal: Where the error is found that it raises when it refuses; None if it never does.
    """

    name: str
    distribution: str | None
    make: Callable[[str], Any]
    ways: Callable[[Any], Ways]
    refusal: str | None

    @property
    def is_installed(self) -> bool:
        """Whether its distribution is there."""
        return self.distribution is None or self.version is not None

    @property
    def version(self) -> str | None:
        """The version of its distribution; None if that is not there."""
        try:
            return None if self.distribution is None else importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return None

    @property
    def is_ours(self) -> bool:
        """Whether it is of this project."""
        return self.distribution == OURS

    def refusal_class(self) -> type[Exception]:
        """The class of ``refusal``."""
        return resolve_name(self.refusal)


def failures_to_open(end: str) -> int:
    """The threshold of those who count failures in a row: five, which is what most of them say."""
    return NEVER if end == "raising" else 5


def all_ways(decorate, run, run_async, block) -> Ways:
    """For those who offer every form in both flavours."""
    return {
        ("sync", "decorator"): decorate,
        ("sync", "run"): run,
        ("sync", "with"): block,
        ("async", "decorator"): decorate,
        ("async", "run"): run_async,
        ("async", "with"): block,
    }


def decorator_only(decorate) -> Ways:
    """For those who offer nothing else, and for forms that would not refuse."""
    return {("sync", "decorator"): decorate, ("async", "decorator"): decorate}
