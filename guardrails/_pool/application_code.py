"""Tells by the file whether code is the application's. Depends on file names only; must not import a pool.

All other code is that of frameworks, drivers, servers and Python itself.
"""

from __future__ import annotations

import os
import pathlib
import sysconfig

__all__ = ["DRIVERS", "STDLIB", "is_framework", "package_of"]

_FRAMEWORKS = {
    "_pytest",
    "aiohttp",
    "aiomysql",
    "aiosqlite",
    "anyio",
    "asgiref",
    "asyncmy",
    "asyncpg",
    "billiard",
    "bottle",
    "celery",
    "click",
    "ddtrace",
    "debug_toolbar",
    "django",
    "dramatiq",
    "elasticapm",
    "fastapi",
    "fastapi_cli",
    "flask",
    "flask_sqlalchemy",
    "gevent",
    "granian",
    "greenlet",
    "gunicorn",
    "hypercorn",
    "jinja2",
    "kombu",
    "litestar",
    "MySQLdb",
    "newrelic",
    "ninja",
    "opentelemetry",
    "pg8000",
    "pluggy",
    "psycopg",
    "psycopg2",
    "psycopg_pool",
    "pybreaker",
    "pymysql",
    "pytest",
    "redis",
    "rest_framework",
    "rq",
    "sentry_sdk",
    "silk",
    "sqlalchemy",
    "sqlmodel",
    "starlette",
    "tenacity",
    "typer",
    "uvicorn",
    "uvloop",
    "waitress",
    "werkzeug",
    "wsgiref",
}
"""Packages between the application and the database, or between the server and the application.

Those that trace statements are among them, because they wrap the driver's calls.
"""

DRIVERS = {"MySQLdb", "aiomysql", "aiosqlite", "asyncmy", "asyncpg", "pg8000", "psycopg", "pymysql"}

_OURS = str(pathlib.Path(__file__).absolute().parents[1]) + os.sep
STDLIB = tuple(sysconfig.get_paths()[key] + os.sep for key in ("stdlib", "platstdlib"))
_INSTALLED = ("site-packages", "dist-packages")
_SCRIPTS = sysconfig.get_paths()["scripts"] + os.sep


def is_framework(filename: str) -> bool:
    """True if a file is of a framework, a driver or the standard library, not of the application.

    The scripts that ``pip`` makes, such as ``bin/gunicorn``, only call the package that they start.
    """
    if filename.startswith(("<", _OURS)) or (filename.startswith(_SCRIPTS) and not filename.endswith(".py")):
        return True
    package = package_of(filename)
    return filename.startswith(STDLIB) if package is None else package in _FRAMEWORKS


def package_of(filename: str) -> str | None:
    """The installed package that a file belongs to, or None."""
    parts = filename.replace("\\", "/").split("/")
    for folder in _INSTALLED:
        if folder in parts:
            return parts[parts.index(folder) + 1].removesuffix(".py")
    return None
