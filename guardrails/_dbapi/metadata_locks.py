"""Reads who holds the metadata locks of MariaDB and MySQL, for which an ``ALTER TABLE`` waits.

Depends on SQL only; must not import a driver. No text of a statement leaves the server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

__all__ = ["MetadataWait", "read_metadata_waits"]

Execute = Callable[[str], Sequence[Sequence[Any]]]

_PERFORMANCE_SCHEMA = """
select l.object_type, l.object_schema, l.object_name, t.processlist_id, l.lock_type, l.lock_status
from performance_schema.metadata_locks l
join performance_schema.threads t on t.thread_id = l.owner_thread_id
join (
    select distinct object_type, object_schema, object_name
    from performance_schema.metadata_locks where lock_status = 'PENDING'
) wanted on wanted.object_type = l.object_type
    and wanted.object_schema <=> l.object_schema and wanted.object_name <=> l.object_name
where t.processlist_id is not null
"""
"""MySQL 8 records these locks; MariaDB does so only with its instrument ``wait/lock/metadata/sql/mdl``."""

_PLUGIN = """
select p.id, m.table_schema, m.table_name, m.thread_id, m.lock_mode
from information_schema.processlist p
join information_schema.metadata_lock_info m
    on m.thread_id <> p.id and m.lock_type = 'Table metadata lock'
    and (m.table_schema = p.db or locate(m.table_schema, p.info))
    and case when m.table_name regexp '^[a-zA-Z0-9_]+$'
        then p.info regexp concat('[[:<:]]', m.table_name, '[[:>:]]')
        else locate(m.table_name, p.info) end
where locate('metadata lock', p.state)
"""
"""MariaDB's plugin METADATA_LOCK_INFO has the locks that are held, and not those that are waited for. So the
server looks for the table in the statement that waits."""

_STRONG = {"EXCLUSIVE", "SHARED_NO_READ_WRITE", "SHARED_NO_WRITE", "SHARED_READ_ONLY"}
"""Kinds of locks that stop statements of others. Later requests wait also behind a request for one."""

_WRITES = {"SHARED_WRITE", "SHARED_WRITE_LOW_PRIO"}

_CONFLICTS: dict[str, set[str]] = {
    "INTENTION_EXCLUSIVE": {"SHARED"},
    "SHARED": {"INTENTION_EXCLUSIVE"},
    "SHARED_HIGH_PRIO": set(),
    "SHARED_READ": {"SHARED_NO_READ_WRITE"},
    "SHARED_WRITE": _STRONG,
    "SHARED_WRITE_LOW_PRIO": _STRONG,
    "SHARED_UPGRADABLE": {"SHARED_UPGRADABLE", "SHARED_NO_WRITE", "SHARED_NO_READ_WRITE"},
    "SHARED_READ_ONLY": _WRITES | {"SHARED_NO_READ_WRITE"},
    "SHARED_NO_WRITE": _WRITES | {"SHARED_UPGRADABLE", "SHARED_NO_WRITE", "SHARED_NO_READ_WRITE"},
}
"""The kinds of locks that each kind waits for, besides EXCLUSIVE. Other kinds wait for any lock."""


class MetadataWait(NamedTuple):
    """A session that waits for a metadata lock.

    Attributes:
        blockers: The sessions that hold it, or wait for it before this one.
        table: The table, or None for another object.
    """

    blockers: tuple[int, ...]
    table: str | None


def read_metadata_waits(execute: Execute, *, mariadb: bool) -> dict[int, MetadataWait]:
    """Returns the waits for metadata locks by session, as far as the server tells them to this user.

    Args:
        execute: Runs a statement on a connection to the server.
        mariadb: False for MySQL.
    """
    found = _of_performance_schema(_rows(execute, _PERFORMANCE_SCHEMA))
    return found or (_of_plugin(_rows(execute, _PLUGIN)) if mariadb else {})


def _rows(execute: Execute, question: str) -> Sequence[Sequence[Any]]:
    try:
        return execute(question)
    except Exception as error:
        original = getattr(error, "orig", None) or error
        if not (original.args and original.args[0] in _NOT_TOLD):
            raise
        return ()


_NOT_TOLD = {1044, 1109, 1142, 1146, 1227}
"""The error codes for a missing privilege, and for a table that the server does not have."""


def _of_performance_schema(rows: Iterable[Sequence[Any]]) -> dict[int, MetadataWait]:
    of_object: dict[tuple[Any, ...], list[tuple[int, str, bool]]] = {}
    for kind, schema, name, pid, mode, status in rows:
        of_object.setdefault((kind, schema, name), []).append((pid, mode, status == "PENDING"))
    return {
        pid: MetadataWait(_blockers(pid, mode, locks), name if kind == "TABLE" else None)
        for (kind, _, name), locks in of_object.items()
        for pid, mode, is_pending in locks
        if is_pending
    }


def _blockers(pid: int, mode: str, locks: Iterable[tuple[int, str, bool]]) -> tuple[int, ...]:
    """Returns the sessions for which a request waits."""
    found = [
        other
        for other, held, is_pending in locks
        if other != pid
        and (held == "EXCLUSIVE" or held in _CONFLICTS.get(mode, {held}))
        and (not is_pending or (held in _STRONG and mode not in _STRONG))
    ]
    return tuple(dict.fromkeys(found))


def _of_plugin(rows: Iterable[Sequence[Any]]) -> dict[int, MetadataWait]:
    held: dict[tuple[int, str, str], list[tuple[int, str]]] = {}
    for pid, schema, table, holder, mode in rows:
        held.setdefault((pid, schema, table), []).append((holder, str(mode).removeprefix("MDL_")))
    found: dict[int, MetadataWait] = {}
    for (pid, _, table), locks in held.items():
        # Its own request is unknown. Beside a strong lock those of other sessions are not what it waits for.
        strong = [holder for holder, mode in locks if mode in _STRONG]
        blockers = strong or [holder for holder, _ in locks]
        before = found.get(pid, MetadataWait((), table))
        found[pid] = MetadataWait(tuple(dict.fromkeys((*before.blockers, *blockers))), before.table)
    return found
