"""Notices that a server's name leads to another address. Depends on threads only; must not import a pool."""

from __future__ import annotations

import ipaddress
import math
import socket
import time
from collections.abc import Callable, Iterable

from guardrails._runtime.threads import daemon

__all__ = ["NameWatch", "names_in", "resolve"]

_INTERVAL = 5.0
"""Seconds between two look-ups of a name while there are connections."""

_CONFIRM = 0.5
"""Seconds until a second look-up confirms that an address is gone."""

_REMEMBERED = 60.0
"""Seconds for which an address that is gone is remembered."""

_RETURNS = 3
"""Addresses that come back within `_REMEMBERED` seconds. From this number on the name counts as one whose
answers rotate."""


def names_in(hosts: Iterable[object]) -> frozenset[str]:
    """Returns the host names among hosts, without addresses and paths; lists of hosts are split."""
    found: set[str] = set()
    for host in hosts:
        if isinstance(host, list | tuple):
            found |= names_in(host)
        elif isinstance(host, str):
            found.update(part.strip() for part in host.split(","))
    return frozenset(name for name in found if _is_name(name))


def _is_name(host: str) -> bool:
    if not host or host == "localhost" or host.startswith(("/", "@")):  # the last two: a Unix socket
        return False
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return True
    return False


def resolve(name: str) -> frozenset[str]:
    """Returns the addresses of a name.

    Raises:
        OSError: The name could not be resolved.
    """
    return frozenset(str(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM))


class NameWatch:
    """Resolves the names of a pool's servers every few seconds.

    An address is gone when two look-ups in a row do not have it. A name whose answers rotate among addresses
    is not watched any longer.

    Attributes:
        names: The names.
    """

    def __init__(self) -> None:
        self.names: frozenset[str] = frozenset()
        self._known: frozenset[str] = frozenset()
        self._missing: frozenset[str] = frozenset()
        self._gone: dict[str, float] = {}
        self._returns = 0
        self._next = math.inf
        self._under_way = False

    def add(self, names: frozenset[str], peer: str) -> None:
        """Adds names, after a connection to one of them was opened, and the address that it reached."""
        if peer in self._gone:  # an older answer, a user's own ``hostaddr``, or a name that rotates
            self._note_returns(1)
        if self._returns >= _RETURNS:
            return
        if not names <= self.names:
            self.names |= names
            self._next = 0.0
        if peer not in self._known:
            self._known |= {peer}

    def _note_returns(self, count: int) -> None:
        self._returns += count
        if self._returns >= _RETURNS:
            self.names = frozenset()

    def forget_look_up(self) -> None:
        """Forgets a look-up under way: a child process does not have its thread."""
        self._under_way = False

    def is_due(self, now: float) -> bool:
        """Returns True if a look-up is due."""
        return bool(self.names) and now >= self._next and not self._under_way

    def next_look_up(self, now: float) -> float:
        """Returns the seconds until the next look-up; infinite if there are no names."""
        return max(0.05, self._next - now) if self.names else math.inf

    def look_up_soon(self, now: float) -> bool:
        """Makes a look-up due now; False if a look-up is due already or was less than half a second ago."""
        soon = min(self._next, now)
        if not self.names or self._next <= now or self._next > now + _INTERVAL - _CONFIRM:
            return False
        self._next = soon
        return True

    def look_up(self, gone: Callable[[frozenset[str]], None]) -> None:
        """Resolves the names in a thread of its own, because a resolver may hang.

        Args:
            gone: Called with addresses that are gone.
        """
        self._under_way = True
        self._next = time.monotonic() + _INTERVAL
        try:
            daemon("guardrails-resolve", self._run, gone).start()
        except RuntimeError:  # the interpreter shuts down
            self._under_way = False

    def _run(self, gone: Callable[[frozenset[str]], None]) -> None:
        try:
            answer = frozenset[str]().union(*map(resolve, self.names))
        except (OSError, UnicodeError):
            return  # it says nothing about the address
        finally:
            self._under_way = False
        missing = self.note(time.monotonic(), answer)
        if missing:
            gone(missing)

    def note(self, now: float, answer: frozenset[str]) -> frozenset[str]:
        """Notes an answer; returns the addresses that are gone."""
        self._gone = {each: at for each, at in self._gone.items() if now - at < _REMEMBERED}
        back = answer & self._gone.keys()
        for address in back:
            del self._gone[address]
        self._note_returns(len(back))
        if not self.names:
            return frozenset()
        missing = self._known - answer
        confirmed = missing & self._missing
        self._missing = missing - confirmed
        self._known = (self._known | answer) - confirmed
        self._gone.update(dict.fromkeys(confirmed, now))
        if self._missing:
            self._next = now + _CONFIRM
        return confirmed
