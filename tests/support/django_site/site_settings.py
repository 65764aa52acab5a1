"""Settings of a small project with a production database that its tests must never reach."""

from __future__ import annotations

import json
import os

if os.environ.get("SITE_DRIVER") == "pymysql":
    import pymysql

    pymysql.install_as_MySQLdb()

SECRET_KEY = "not a secret"
USE_TZ = True
INSTALLED_APPS = ["django.contrib.contenttypes", "shop"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = json.loads(os.environ["SITE_DATABASES"])
DATABASE_ROUTERS = ["shop.routers.Router"]
