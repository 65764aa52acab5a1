"""Django without a project: its settings are the process's, so whoever tests it imports them from here."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys

import django
import pymysql
from django.conf import settings
from django.db import close_old_connections, connections
from django.db.utils import ConnectionHandler
from psycopg.conninfo import conninfo_to_dict

if not settings.configured:
    settings.configure(ALLOWED_HOSTS=["*"], USE_TZ=True, SECRET_KEY="not a secret")
    django.setup(set_prefix=False)

ENGINE = "guardrails.integrations.django.postgresql"
MYSQL = "guardrails.integrations.django.mysql"

WORDS = {"dbname": "NAME", "host": "HOST", "port": "PORT", "user": "USER"}
"""What libpq and Django call the same things."""


def database(server, options, **more):
    """An entry of DATABASES."""
    told = conninfo_to_dict(server.url(""))
    return {"ENGINE": ENGINE, **{WORDS[word]: told[word] for word in WORDS}, "OPTIONS": options, **more}


def load_mysql():
    """Imports the backend of MySQL and returns its module.

    It runs on PyMySQL, which is there for MySQLdb during the import alone: other tests may want mysqlclient.
    With DJANGO_MYSQL=mysqlclient in the environment it runs on that.
    """
    name = "guardrails.integrations.django.mysql.base"
    if name not in sys.modules:
        theirs = {key: sys.modules.pop(key) for key in list(sys.modules) if key.split(".")[0] == "MySQLdb"}
        try:
            if os.environ.get("DJANGO_MYSQL") != "mysqlclient":
                pymysql.install_as_MySQLdb()
            importlib.import_module(name)
        finally:
            if os.environ.get("DJANGO_MYSQL") != "mysqlclient":
                for key in [key for key in sys.modules if key.split(".")[0] == "MySQLdb"]:
                    del sys.modules[key]
                sys.modules.update(theirs)
    return sys.modules[name]


def mysql_database(server, options, **more):
    """An entry of DATABASES for MariaDB."""
    plain = {} if os.environ.get("DJANGO_MYSQL") == "mysqlclient" else {"ssl_disabled": True}
    address = {"NAME": "guardrails", "HOST": "127.0.0.1", "PORT": server.port, "USER": "lab"}
    return {"ENGINE": MYSQL, **address, "OPTIONS": plain | options, **more}


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
