"""The fault proxy forwards all bytes but for the faults that it was given."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from guardrails import ConfigurationError
from guardrails.testing.proxy import FaultProxy
from guardrails.testing.servers import ValkeyServer, free_port

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(scope="module")
def valkey():
    with ValkeyServer.start() as server:
        yield server


@pytest.fixture
def proxy(valkey):
    with FaultProxy(valkey.port) as proxy:
        yield proxy


@pytest.fixture
def client(proxy):
    with connect(proxy) as client:
        assert ask(client) == b"+PONG\r\n"
        yield client


def connect(proxy, timeout=5.0):
    return socket.create_connection((proxy.host, proxy.port), timeout)


def ask(client, question=b"PING\r\n"):
    client.sendall(question)
    return client.recv(65536)


def poll(condition):
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.005)


def silent(client, seconds=0.15):
    """True if nothing arrives for a while."""
    client.settimeout(seconds)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(5)
    return False


def test_healthy_proxy_only_counts(proxy, client):
    """Without a fault it is a wire that knows how much went through it."""
    assert (proxy.connections, proxy.accepted) == (1, 1)
    assert (proxy.sent_to_server, proxy.turns) == (6, 1)
    poll(lambda: proxy.sent_to_client == 7)
    for _ in range(3):
        ask(client)
    assert proxy.turns == 4
    client.close()
    poll(lambda: proxy.connections == 0)
    assert proxy.accepted == 1
    assert repr(proxy) == f"<FaultProxy 127.0.0.1:{proxy.port} 0 open>"


def test_pipelined_questions_are_one_turn(proxy, client):
    """A turn is a round trip on the wire, however many questions share it."""
    before = proxy.turns
    client.sendall(b"PING\r\n" * 10)
    received = 0
    while received < 70:
        received += len(client.recv(65536))
    assert proxy.turns == before + 1


def test_large_messages_pass_whole_both_ways(proxy):
    """More than any buffer holds goes through in order, also when the reader is slow."""
    data = bytes(range(256)) * 40_000
    with connect(proxy) as client:
        head = b"*2\r\n$4\r\nECHO\r\n$%d\r\n" % len(data)
        sender = threading.Thread(target=client.sendall, args=(head + data + b"\r\n",))
        sender.start()
        time.sleep(0.1)
        answer = bytearray()
        while len(answer) < len(data) + 13:
            answer += client.recv(1 << 20)
        sender.join()
    assert answer == b"$%d\r\n" % len(data) + data + b"\r\n"


@pytest.mark.parametrize(("towards", "least"), [("both", 0.4), ("client", 0.2), ("server", 0.2)])
def test_delay_holds_each_chunk(proxy, client, towards, least):
    """Each chunk comes that much later, in the direction asked for, and at once after healing."""
    proxy.delay(0.2, towards=towards)
    start = time.monotonic()
    assert ask(client) == b"+PONG\r\n"
    assert least <= time.monotonic() - start < least + 1
    proxy.delay(30)
    client.sendall(b"PING\r\n")
    assert silent(client)
    proxy.heal()
    assert client.recv(100) == b"+PONG\r\n"


@pytest.mark.parametrize("towards", ["both", "client", "server"])
def test_hang_holds_everything_and_notifies_neither_side(proxy, client, towards):
    """Old connections and new ones stay open and silent; what was held goes out on healing."""
    sent = proxy.sent_to_server
    proxy.hang(towards=towards)
    with connect(proxy) as late:
        for one in (client, late):
            one.sendall(b"PING\r\n")
            assert silent(one)
        assert proxy.connections == 2
        assert (proxy.sent_to_server == sent) is (towards != "client")
        proxy.heal()
        assert client.recv(100) == late.recv(100) == b"+PONG\r\n"


def test_end_of_stream_is_held_too(proxy, client):
    """While it hangs the server does not learn that a client left."""
    proxy.hang()
    client.close()
    time.sleep(0.1)
    assert proxy.connections == 1
    proxy.heal()
    poll(lambda: proxy.connections == 0)


def test_slices_arrive_one_at_a_time(proxy, client):
    """The client gets no more than a few bytes at once, a little apart."""
    proxy.slice(2, every=0.05)
    client.sendall(b"PING\r\n")
    start = time.monotonic()
    chunks = []
    while b"".join(chunks) != b"+PONG\r\n":
        chunks.append(client.recv(100))
    assert len(chunks[0]) == 2
    assert time.monotonic() - start >= 0.14  # three gaps between four slices
    proxy.heal()
    assert ask(client) == b"+PONG\r\n"


@pytest.mark.parametrize("count", [0, 3])
def test_cut_comes_after_so_many_bytes_and_once(proxy, client, count):
    """The connection that carries the last byte is reset in the middle of its answer; the next is well."""
    proxy.cut_after(count)
    client.sendall(b"PING\r\n")
    received = b""
    with pytest.raises(ConnectionResetError):
        while True:
            received += client.recv(100)
    assert received == b"+PONG\r\n"[:count]
    with connect(proxy) as again:
        assert ask(again) == b"+PONG\r\n"


def test_silence_comes_after_so_many_bytes(proxy, client):
    """The client gets the beginning of an answer, and the rest of it when the wire is well again."""
    proxy.hang_after(3)
    client.sendall(b"PING\r\n")
    assert client.recv(100) == b"+PO"
    assert silent(client)
    with connect(proxy) as late:
        late.sendall(b"PING\r\n")
        assert silent(late)
    proxy.heal()
    assert client.recv(100) == b"NG\r\n"
    assert ask(client) == b"+PONG\r\n"


def test_reset_hits_open_connections_only(proxy, client, valkey):
    """Both sides of an open connection get the reset at once; a new connection does not."""
    proxy.reset()
    assert proxy.connections == 0
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with connect(proxy) as again:
        assert ask(again) == b"+PONG\r\n"
        # The server has lost the first client: it counts the new one and the asker's.
        with socket.create_connection(("127.0.0.1", valkey.port), 5) as spy:
            poll(lambda: b"connected_clients:2" in ask(spy, b"INFO clients\r\n"))


def test_half_closed_connection_ends_one_way(proxy, client):
    """The client reads the end of the stream; what it says still reaches the server."""
    sent = proxy.sent_to_server
    proxy.half_close()
    assert client.recv(1) == b""
    client.sendall(b"PING\r\n")
    poll(lambda: proxy.sent_to_server == sent + 6)
    client.close()
    poll(lambda: proxy.connections == 0)


def test_refusing_leaves_open_connections_alone(proxy, client):
    """Nobody new gets in until it heals, on the same port."""
    port = proxy.port
    proxy.refuse()
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    assert ask(client) == b"+PONG\r\n"
    proxy.heal()
    assert proxy.port == port
    with connect(proxy) as again:
        assert ask(again) == b"+PONG\r\n"


def test_heal_raises_if_the_port_was_taken_meanwhile(proxy, monkeypatch):
    """If another process has the port when it heals, the caller gets an error."""
    monkeypatch.setattr("guardrails.testing._relay._REBIND_LIMIT", 0.1)
    proxy.refuse()
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind((proxy.host, proxy.port))
        thief.listen()
        with pytest.raises(OSError, match="in use"):
            proxy.heal()
    proxy.heal()
    with connect(proxy) as client:
        assert ask(client) == b"+PONG\r\n"


def test_absent_server_resets_the_client():
    """Without a server behind it a connection is accepted and reset."""
    # The reset may come before the client has noticed that it was connected.
    with FaultProxy(free_port()) as proxy, pytest.raises(ConnectionResetError), connect(proxy) as client:
        client.recv(1)


def test_many_connections_and_faults_at_once(proxy):
    """Threads that talk while others break and heal get right answers or clean errors, and end."""
    wrong = []

    def talk():
        for _ in range(30):
            try:
                with connect(proxy, 1) as client:
                    wrong.extend(answer for answer in [ask(client)] if answer not in {b"+PONG\r\n", b""})
            except OSError:
                pass

    talkers = [threading.Thread(target=talk) for _ in range(8)]
    for talker in talkers:
        talker.start()
    while any(talker.is_alive() for talker in talkers):
        for fault in (proxy.reset, proxy.half_close, proxy.refuse, proxy.heal):
            fault()
    for talker in talkers:
        talker.join()
    assert wrong == []
    proxy.heal()
    poll(lambda: proxy.connections == 0)


def test_closing_leaves_nothing(valkey):
    """No thread, no socket, and the port is free; faults after that are refused."""
    before = set(threading.enumerate())
    proxy = FaultProxy(valkey.port)
    with connect(proxy) as client:
        ask(client)
        proxy.close()
        proxy.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert set(threading.enumerate()) == before
    assert proxy.connections == 0
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    with pytest.raises(RuntimeError, match="closed"):
        proxy.hang()


@pytest.mark.parametrize(
    ("break_", "field"),
    [
        (lambda proxy: proxy.delay(-1), "seconds"),
        (lambda proxy: proxy.delay(float("nan")), "seconds"),
        (lambda proxy: proxy.delay(1, towards="left"), "towards"),
        (lambda proxy: proxy.hang(towards="left"), "towards"),
        (lambda proxy: proxy.slice(0), "size"),
        (lambda proxy: proxy.slice(1, every=-1), "every"),
        (lambda proxy: proxy.cut_after(-1), "count"),
        (lambda proxy: proxy.hang_after(0), "count"),
        (lambda proxy: FaultProxy(0), "port"),
        (lambda proxy: FaultProxy(70000), "port"),
    ],
)
def test_wrong_arguments_are_named(proxy, break_, field):
    """Arguments that are no duration, side or count are refused before any fault begins."""
    with pytest.raises(ConfigurationError, match=f"{field} must be"):
        break_(proxy)
