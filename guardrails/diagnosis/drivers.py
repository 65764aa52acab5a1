"""Chooses the driver with which a database is asked. Depends on SQLAlchemy's URLs; must not connect."""

from __future__ import annotations

from sqlalchemy import URL

from guardrails.errors import ConfigurationError

__all__ = ["ON_LOOP", "with_driver"]

_DRIVERS = {
    "postgresql": ("psycopg", "psycopg2", "asyncpg"),
    "mysql": ("pymysql", "asyncmy"),
    "mariadb": ("pymysql", "asyncmy"),
}
"""Usable drivers by dialect: the URL's own, else the first that is installed."""

ON_LOOP = ("asyncpg", "asyncmy")
"""Those of them that need an event loop."""

_KEPT = {
    "asyncpg": {"host", "port", "passfile", "service", "target_session_attrs"},
    "asyncmy": {"unix_socket", "read_default_file", "read_default_group"}
    | {f"ssl_{part}" for part in ("ca", "capath", "cert", "check_hostname", "cipher", "key")},
}
"""The options that each of these has in common with the drivers for threads."""

_NEEDED = ("ssl", "tls", "direct_tls", "channel_binding", "require_auth", "hostaddr")
"""How the options begin without which another server might be asked, or without the protection of TLS."""


def with_driver(url: URL) -> URL:
    """Returns a URL with a driver that is installed; the URL may name any.

    Raises:
        ConfigurationError: The database is not supported, or none of its drivers is installed.
    """
    url = _with_usual_name(url)
    dialect = url.get_backend_name()
    if dialect not in _DRIVERS:
        raise ConfigurationError(_not_a_database(dialect))
    _, _, own = url.drivername.partition("+")
    for driver in sorted(_DRIVERS[dialect], key=lambda each: each != own):
        candidate = url.set(drivername=f"{dialect}+{driver}")
        try:
            candidate.get_dialect().import_dbapi()
        except ImportError:
            continue
        return _with_options(candidate, url.get_driver_name())
    drivers = ", ".join(_DRIVERS[dialect])
    raise ConfigurationError(f"{dialect} needs one of the drivers {drivers}: pip install {_package(dialect)}")


def _with_options(url: URL, given: str) -> URL:
    """The URL with those options that its driver has, if it was written for the driver ``given``.

    Raises:
        ConfigurationError: One that cannot be left out is missing in the driver.
    """
    driver = url.get_driver_name()
    on_loop = [name for name in (driver, given) if name in ON_LOOP]
    if driver == given or not on_loop:
        return url
    query, kept = dict(url.query), _KEPT[on_loop[0]]
    if "asyncpg" in on_loop:
        theirs, ours = ("sslmode", "ssl") if driver == "asyncpg" else ("ssl", "sslmode")
        kept = kept | {ours}
        if theirs in query:
            query[ours] = query.pop(theirs)
    for name in query:
        if name not in kept and name.startswith(_NEEDED):
            package = given if given in ON_LOOP else _package(url.get_backend_name())
            raise ConfigurationError(f"{driver} has no {name}, which is in the URL: pip install {package}")
    return url.set(query={name: value for name, value in query.items() if name in kept})


def _package(dialect: str) -> str:
    return "'psycopg[binary]'" if dialect == "postgresql" else "pymysql"


def _with_usual_name(url: URL) -> URL:
    # libpq and most hosting services write postgres://, which SQLAlchemy no longer accepts.
    name, plus, driver = url.drivername.partition("+")
    return url.set(drivername=f"postgresql{plus}{driver}") if name == "postgres" else url


def _not_a_database(dialect: str) -> str:
    if dialect in {"http", "https"}:
        return "an http URL is a status page: --status URL, and the database's URL in DATABASE_URL"
    return f"{dialect} cannot be asked; PostgreSQL, MariaDB, MySQL and Redis can"
