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
"""Usable drivers by dialect; the first installed one is used."""

ON_LOOP = ("asyncpg", "asyncmy")
"""Those of them that need an event loop."""


def with_driver(url: URL) -> URL:
    """Returns a URL with a driver that is installed; the URL may name any.

    Raises:
        ConfigurationError: The database is not supported, or none of its drivers is installed.
    """
    url = _with_usual_name(url)
    dialect = url.get_backend_name()
    if dialect not in _DRIVERS:
        raise ConfigurationError(_not_a_database(dialect))
    for driver in _DRIVERS[dialect]:
        candidate = url.set(drivername=f"{dialect}+{driver}")
        try:
            candidate.get_dialect().import_dbapi()
        except ImportError:
            continue
        return _with_options(candidate, url.get_driver_name())
    package = "'psycopg[binary]'" if dialect == "postgresql" else "pymysql"
    drivers = ", ".join(_DRIVERS[dialect])
    raise ConfigurationError(f"{dialect} needs one of the drivers {drivers}: pip install {package}")


def _with_options(url: URL, given: str) -> URL:
    """The URL without options that its driver does not have, if it was written for the driver ``given``."""
    driver = url.get_driver_name()
    if driver == given or not (driver in ON_LOOP or "async" in given):
        return url
    mode = url.query.get("sslmode")
    return url.set(query={"ssl": mode} if driver == "asyncpg" and mode else {})


def _with_usual_name(url: URL) -> URL:
    # libpq and most hosting services write postgres://, which SQLAlchemy no longer accepts.
    name, plus, driver = url.drivername.partition("+")
    return url.set(drivername=f"postgresql{plus}{driver}") if name == "postgres" else url


def _not_a_database(dialect: str) -> str:
    if dialect in {"http", "https"}:
        return "an http URL is a status page: --status URL, and the database's URL in DATABASE_URL"
    return f"{dialect} cannot be asked; PostgreSQL, MariaDB, MySQL and Redis can"
