"""Settings for Django's own tests, bare or with a guard under each database."""

from __future__ import annotations

import json
import os

DATABASES = json.loads(os.environ["SUITE_DATABASES"])
TEST_RUNNER = "suite_runner.Runner"
SECRET_KEY = "django_tests_secret_key"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False
