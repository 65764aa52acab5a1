"""A guard under every engine that SQLAlchemy's tests make, without a circuit."""

from __future__ import annotations

import functools

import sqlalchemy
from guarding import GUARDED, count, pytest_sessionfinish
from sqlalchemy import Engine
from sqlalchemy.engine import create
from sqlalchemy.ext.asyncio import engine as asyncio_engine

from guardrails import ConfigurationError, protect

__all__ = ["pytest_sessionfinish"]

SETTINGS = {"breaker": None, "leak_after": None, "max_wait_duration": 0.05}
"""No circuit: the tests provoke one error after the other."""

ATTEMPTS = [
    {"timeout": 30},
    {"timeout": 30, "max_concurrent_calls": 200},
    {"timeout": None},
    {"timeout": None, "max_concurrent_calls": 200},
]
"""The first that is accepted: not every pool has a size, and not every driver's calls can be stopped."""


def guard(engine):
    """Puts a guard under an engine; a mock of one is left alone."""
    for attempt in ATTEMPTS if isinstance(engine, Engine) else ():
        try:
            protect(engine, **attempt, **SETTINGS)
        except ConfigurationError:
            continue
        count()
        return


if GUARDED:
    plain = create.create_engine

    @functools.wraps(plain)
    def create_engine(*args, **options):
        engine = plain(*args, **options)
        guard(engine)
        return engine

    sqlalchemy.create_engine = sqlalchemy.engine.create_engine = create.create_engine = create_engine
    asyncio_engine._create_engine = create_engine
