"""The transactions that are prepared on a test's server, by their names."""

from __future__ import annotations

import contextlib

__all__ = ["names_of_prepared", "tidy"]


def names_of_prepared(lab):
    """The names of the transactions that a server keeps prepared."""
    if lab.backend.__class__.__name__ == "MariaDB":
        with lab.backend.connect() as connection, connection.cursor() as cursor:
            cursor.execute("xa recover")
            names = (row[3] for row in cursor.fetchall())
            return {name.decode() if isinstance(name, bytes) else name for name in names}
    with lab.backend.connect() as connection:
        return {name for (name,) in connection.execute("select gid from pg_prepared_xacts").fetchall()}


def tidy(lab):
    """Rolls back what a test has left prepared."""
    words = "xa rollback" if lab.backend.__class__.__name__ == "MariaDB" else "rollback prepared"
    for name in names_of_prepared(lab):
        with contextlib.suppress(Exception):  # who prepared it may be ending it
            lab.aside(f"{words} '{name}'")
