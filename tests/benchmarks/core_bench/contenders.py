"""Who takes part here."""

from __future__ import annotations

from core_bench.contender import Contender
from core_bench.own import OWN
from core_bench.peers import PEERS

CONTENDERS = OWN + PEERS


def installed() -> list[Contender]:
    """Those that can take part here."""
    return [contender for contender in CONTENDERS if contender.is_installed]


def versions() -> dict[str, str]:
    """The version of each distribution that takes part."""
    return {each.distribution: each.version for each in installed() if each.distribution and each.version}
