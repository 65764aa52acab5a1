"""Its settings. The servers' ports, and for how long connections are kept, are in the environment."""

from __future__ import annotations

import json
import os

PLAIN: dict[str, object] = {}
if os.environ.get("DJANGO_MYSQL") != "mysqlclient":
    import pymysql

    pymysql.install_as_MySQLdb()
    PLAIN = {"ssl_disabled": True}  # it would load every root certificate for each connection

SECRET_KEY = "not a secret"
USE_TZ = True
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "orders.urls"
INSTALLED_APPS = ["orders"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASE_ROUTERS = ["orders.routers.Router"]
MIDDLEWARE = [
    "guardrails.integrations.django.GuardrailsMiddleware",
    "django.middleware.common.CommonMiddleware",
]
GUARDRAILS = {
    "guards": ["orders.guards.primary", "orders.guards.replica", "orders.guards.archive"],
    "exempt": ["/figures"],
}

KEPT = {"CONN_MAX_AGE": json.loads(os.environ.get("KEEPS", "0")), "CONN_HEALTH_CHECKS": True}
POSTGRES = {
    "ENGINE": "guardrails.integrations.django.postgresql",
    "NAME": "postgres",
    "HOST": "127.0.0.1",
    "USER": "postgres",
    **KEPT,
}
DATABASES = {
    "default": {
        **POSTGRES,
        "PORT": os.environ["PRIMARY"],
        "OPTIONS": {"guard": "orders.guards.primary"},
    },
    "replica": {
        **POSTGRES,
        "PORT": os.environ["REPLICA"],
        "OPTIONS": {"guard": "orders.guards.replica"},
    },
    "archive": {
        "ENGINE": "guardrails.integrations.django.mysql",
        "NAME": "guardrails",
        "HOST": "127.0.0.1",
        "USER": "lab",
        "PORT": os.environ["ARCHIVE"],
        **KEPT,
        "OPTIONS": {"guard": "orders.guards.archive", **PLAIN},
    },
}
