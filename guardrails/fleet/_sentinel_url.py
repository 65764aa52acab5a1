"""The client of a store whose primary Sentinels know, from one URL. Depends on redis-py.

``redis+sentinel://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...]/NAME[/DB]``; with TLS ``rediss+sentinel://``.
User and password are those of the servers. The options ``sentinel_username`` and ``sentinel_password`` are
those of the Sentinels; all others are as in a URL of redis-py.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

__all__ = ["SCHEMES", "client_of"]

SCHEMES = ("redis+sentinel://", "rediss+sentinel://")

_PORT = 26379
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:@/]+))(?::([0-9]{1,5}))?")
_OF_SENTINELS = "sentinel_"


def client_of(url: str, **options: Any) -> Any:
    """Returns a client that asks the Sentinels for the primary with each new connection.

    Args:
        url: The URL.
        **options: As for ``redis.Redis``, for the connections to the server and to the Sentinels.

    Raises:
        ValueError: The URL is wrong.
    """
    import redis.connection  # noqa: PLC0415 - an optional dependency
    import redis.sentinel  # noqa: PLC0415

    parse_url: Any = redis.connection.parse_url  # it has no types
    make_manager: Any = redis.sentinel.Sentinel
    scheme, _, rest = url.partition("+sentinel://")
    place, slash, path = rest.partition("/")
    credentials, at, hosts = place.rpartition("@")
    split = urlsplit(f"{slash}{path}")
    name, _, database = split.path.strip("/").partition("/")
    if not name or not (database or "0").isdecimal():
        raise ValueError("no name of a primary, or a database that is no number")
    query = parse_qs(split.query)
    own = {key: query.pop(key)[-1] for key in list(query) if key.startswith(_OF_SENTINELS)}
    server = parse_url(f"{scheme}://{credentials}{at}server/{database}?{urlencode(query, doseq=True)}")
    is_tls = server.pop("connection_class", None) is redis.connection.SSLConnection
    server = {key: value for key, value in server.items() if key not in {"host", "port"}}
    tls = {key: value for key, value in server.items() if key.startswith("ssl_")}
    shared = {**options, **tls, **({"ssl": True} if is_tls else {})}
    of_sentinels = {key.removeprefix(_OF_SENTINELS): value for key, value in own.items()}
    if of_sentinels.keys() - {"username", "password"}:
        raise ValueError("an unknown option of the sentinels")
    sentinel = make_manager(list(map(_address, hosts.split(","))), sentinel_kwargs={**shared, **of_sentinels})
    return sentinel.master_for(name, **{**shared, **server})


def _address(text: str) -> tuple[str, int]:
    found = _HOST.fullmatch(text)
    if found is None:
        raise ValueError("no address of a sentinel")
    return found[1] or found[2], int(found[3] or _PORT)
