"""Where models live."""

from __future__ import annotations


class Router:
    """Everything is in the database that is asked for."""

    def allow_migrate(self, db, app_label, **hints):
        return True
