"""Who waits for whom in the rows that MySQL and MariaDB have about their metadata locks."""

from __future__ import annotations

import pytest

from guardrails._dbapi.metadata_locks import MetadataWait, read_metadata_waits
from guardrails._dbapi.server_sessions import read_mysql

GRANTED, PENDING = "GRANTED", "PENDING"


def on_table(*locks, table="orders"):
    """The rows of ``performance_schema.metadata_locks`` for one table."""
    return [("TABLE", "shop", table, pid, mode, status) for pid, mode, status in locks]


def waits(rows):
    return read_metadata_waits(lambda _: rows, mariadb=False)


def blockers(*locks):
    """Of each session that waits, the sessions for which it does."""
    return {pid: wait.blockers for pid, wait in waits(on_table(*locks)).items()}


def test_an_alter_table_waits_for_readers_and_later_statements_wait_behind_it():
    assert waits(
        on_table(
            (1, "SHARED_READ", GRANTED),
            (2, "SHARED_UPGRADABLE", GRANTED),
            (2, "EXCLUSIVE", PENDING),
            (3, "SHARED_READ", PENDING),
            (4, "SHARED_WRITE", PENDING),
        )
    ) == {2: MetadataWait((1,), "orders"), 3: MetadataWait((2,), "orders"), 4: MetadataWait((2,), "orders")}


def test_a_second_alter_table_waits_for_the_first_and_not_for_readers():
    """The first one copies the table; both may be read meanwhile."""
    found = blockers(
        (1, "SHARED_READ", GRANTED), (2, "SHARED_UPGRADABLE", GRANTED), (3, "SHARED_UPGRADABLE", PENDING)
    )
    assert found == {3: (2,)}


def test_a_writer_waits_for_the_copy_and_not_for_other_writers_that_wait():
    found = blockers(
        (1, "SHARED_READ", GRANTED),
        (2, "SHARED_NO_WRITE", GRANTED),
        (3, "SHARED_WRITE", PENDING),
        (4, "SHARED_WRITE", PENDING),
    )
    assert found == {3: (2,), 4: (2,)}


def test_locked_tables_stop_readers():
    assert blockers((1, "SHARED_NO_READ_WRITE", GRANTED), (2, "SHARED_READ", PENDING)) == {2: (1,)}


def test_a_truncate_waits_for_every_lock_but_its_own_and_for_no_other_request():
    found = blockers(
        (1, "SHARED_READ", GRANTED),
        (2, "SHARED_WRITE", GRANTED),
        (3, "EXCLUSIVE", PENDING),
        (3, "SHARED_READ", GRANTED),
        (4, "EXCLUSIVE", PENDING),
    )
    assert found == {3: (1, 2), 4: (1, 2, 3)}


def test_a_global_read_lock_stops_writes_and_is_no_table():
    rows = [
        ("GLOBAL", None, None, 1, "SHARED", GRANTED),
        ("GLOBAL", None, None, 2, "INTENTION_EXCLUSIVE", PENDING),
    ]
    assert waits(rows) == {2: MetadataWait((1,), None)}


def test_a_lock_of_an_unknown_kind_counts():
    """Such as the backup locks of MariaDB."""
    assert blockers((1, "BACKUP_FTWRL1", GRANTED), (2, "BACKUP_FTWRL1", PENDING)) == {2: (1,)}


def test_locks_of_different_tables_are_kept_apart():
    rows = on_table((1, "SHARED_READ", GRANTED)) + on_table((2, "EXCLUSIVE", PENDING), table="stock")
    assert waits(rows) == {2: MetadataWait((), "stock")}


def of_plugin(*rows):
    """What MariaDB says with its plugin alone."""
    return read_metadata_waits(lambda sql: rows if "metadata_lock_info" in sql else [], mariadb=True)


def test_of_mariadbs_plugin_the_strong_lock_is_the_one_that_is_waited_for():
    assert of_plugin(
        (3, "shop", "orders", 1, "MDL_SHARED_READ"),
        (3, "shop", "orders", 2, "MDL_SHARED_NO_WRITE"),
        (4, "shop", "orders", 1, "MDL_SHARED_READ"),
        (4, "shop", "stock", 5, "MDL_SHARED_WRITE"),
    ) == {3: MetadataWait((2,), "orders"), 4: MetadataWait((1, 5), "orders")}


class ServerError(Exception):
    """An error of a driver: a number and a message."""


@pytest.mark.parametrize("number", [1044, 1109, 1142, 1146, 1227])
def test_a_server_that_does_not_tell_is_no_error(number):
    def execute(_):
        raise ServerError(number, "denied")

    assert read_metadata_waits(execute, mariadb=True) == {}


def test_another_error_is_raised():
    def execute(_):
        raise ServerError(2013, "lost connection")

    with pytest.raises(ServerError, match="lost connection"):
        read_metadata_waits(execute, mariadb=True)


# --- the guess -------------------------------------------------------------------------------------


WAITING = "Waiting for table metadata lock"


def server(*processes, transactions):
    """A MySQL server that tells nothing about metadata locks."""
    own = (1, "root", None, "localhost", "Query", 0, "", None, True)

    def execute(sql):
        if "version()" in sql:
            return [("8.4.3",)]
        if "innodb_trx" in sql and "order by" in sql:
            return [(pid,) for pid in transactions]
        if "processlist" in sql and "performance_schema" not in sql:
            return [own, *processes]
        return []

    return execute


def process(pid, database, state="", command="Sleep"):
    return (pid, "shop", database, "10.0.0.1:40000", command, 9, state, None, False)


def guessed(*processes, transactions):
    view = read_mysql(server(*processes, transactions=transactions))
    return {each.pid: (each.waits_for, each.guessed) for each in view.sessions if each.state == "waiting"}


def test_the_oldest_transaction_of_the_same_database_is_the_likely_one():
    """The oldest of all where there is none in that database; never one that waits itself."""
    alter = process(4, "shop", WAITING, "Query")
    others = (process(2, "mail"), process(3, "shop"), process(5, "shop"))
    assert guessed(alter, *others, transactions=(2, 4, 3, 5)) == {4: ((3,), True)}
    assert guessed(alter, others[0], transactions=(4, 2)) == {4: ((2,), True)}
    assert guessed(alter, transactions=(4,)) == {4: ((), False)}


def test_nothing_is_guessed_about_other_locks():
    """An open transaction does not hold a global read lock."""
    waiting = process(4, "shop", "Waiting for global read lock", "Query")
    assert guessed(waiting, process(3, "shop"), transactions=(3,)) == {4: ((), False)}
