"""Django without a project: its settings are the process's, so whoever tests it imports them from here."""

from __future__ import annotations

import contextlib

import django
from django.conf import settings
from django.db import close_old_connections, connections
from django.db.utils import ConnectionHandler
from psycopg.conninfo import conninfo_to_dict

if not settings.configured:
    settings.configure(ALLOWED_HOSTS=["*"], USE_TZ=True)
    django.setup(set_prefix=False)

ENGINE = "guardrails.integrations.django.postgresql"

WORDS = {"dbname": "NAME", "host": "HOST", "port": "PORT", "user": "USER"}
"""What libpq and Django call the same things."""


def database(server, options, **more):
    """An entry of DATABASES."""
    told = conninfo_to_dict(server.url(""))
    return {"ENGINE": ENGINE, **{WORDS[word]: told[word] for word in WORDS}, "OPTIONS": options, **more}


@contextlib.contextmanager
def configured(alias, entry):
    """The database of an alias; gives its connection in this thread."""
    with known(alias, entry):
        yield connections[alias]


@contextlib.contextmanager
def known(alias, entry):
    """The same, and no connection object is made for it."""
    connections.settings[alias] = ConnectionHandler({"default": {}, alias: entry}).settings[alias]
    try:
        yield
    finally:
        # Nothing was made of an entry whose options are refused.
        if any(made.alias == alias for made in connections.all(initialized_only=True)):
            leave(alias)
            if entry["OPTIONS"].get("pool"):
                connections[alias].close_pool()
            del connections[alias]
        del connections.settings[alias]


def leave(alias):
    """Gives back whatever this thread has of a database."""
    connections[alias].close()
    close_old_connections()
