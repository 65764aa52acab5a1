"""The middlewares behind every server: what all must do, and what docs/guides/frameworks.md says of each."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections import Counter

import pytest

from support.http_client import BODY_OF_10_MB, GET, HANDSHAKE, Client
from support.paths import DOCS
from support.polling import wait_until
from support.server_process import Server

GET_AND_CLOSE = GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")

PAGE = DOCS / "guides" / "frameworks.md"

SERVERS = {
    "uvicorn, h11": "uvicorn server_apps:asgi --host 127.0.0.1 --port {port} --http h11",
    "uvicorn, httptools": "uvicorn server_apps:asgi --host 127.0.0.1 --port {port} --http httptools",
    "hypercorn": "hypercorn server_apps:asgi --bind 127.0.0.1:{port}",
    "granian, ASGI": "granian server_apps:asgi --interface asgi --host 127.0.0.1 --port {port}",
    "gunicorn, uvicorn worker": (
        "gunicorn server_apps:asgi --worker-class uvicorn_worker.UvicornWorker --bind 127.0.0.1:{port}"
    ),
    "gunicorn, sync": "gunicorn server_apps:wsgi --bind 127.0.0.1:{port}",
    "gunicorn, gthread": (
        "gunicorn server_apps:wsgi --worker-class gthread --threads 8 --bind 127.0.0.1:{port}"
    ),
    "waitress": "waitress --listen 127.0.0.1:{port} --threads 8 server_apps:wsgi",
    "granian, WSGI": (
        "granian server_apps:wsgi --interface wsgi --host 127.0.0.1 --port {port} --blocking-threads 8"
    ),
}


@pytest.fixture(scope="session")
def servers(tmp_path_factory):
    """Each server is started when it is first wanted, and all are stopped in the end."""
    running = {}

    def serve(name):
        if name not in running:
            log = tmp_path_factory.mktemp("server") / "log"
            running[name] = Server(name, SERVERS[name], log).wait()
        return running[name]

    yield serve
    for server in running.values():
        server.stop()


@pytest.fixture(params=SERVERS)
def server(request, servers):
    """Each of the servers."""
    return servers(request.param)


ASGI = [name for name, command in SERVERS.items() if ":asgi" in command]


@pytest.fixture(scope="session")
def said():
    """What the page says of each server: a row of its table, by column."""
    lines = iter(PAGE.read_text().splitlines())
    cells = lambda line: [cell.strip() for cell in line.strip("|").split("|")]
    columns = next(cells(line) for line in lines if line.startswith("| server |"))
    next(lines)
    rows = {}
    for line in lines:
        if not line.startswith("|"):
            break
        name, *values = cells(line)
        rows[name] = dict(zip(columns[1:], values, strict=True))
    return rows


def test_page_has_every_server(said):
    """A row for each, and each is in the matrix."""
    assert list(said) == list(SERVERS)


# --- the answers -----------------------------------------------------------------------------------


def refusal(client, status=503, *, head=False):
    """Reads one answer of ours and checks it to the last byte."""
    got, headers, body = client.response(head=head)
    assert got == status
    assert headers["content-type"] == "application/problem+json"
    assert headers["cache-control"] == "no-store"
    assert int(headers["content-length"]) > 100
    if not head:
        assert json.loads(body)["status"] == status
    return headers


def goes_on(client, sent=False):
    """What becomes of the connection: ``keeps`` when the next request is served, else ``closes``."""
    try:
        if not sent:
            client.send(GET % b"/ok")
        if not client.reader.peek(1):
            return "closes"
    except ConnectionError:
        return "closes"
    assert client.response()[::2] == (200, b"fine")
    return "keeps"


@pytest.mark.parametrize(("path", "status"), [(b"/edge", 503), (b"/inside", 503), (b"/late", 504)])
def test_answer_arrives_whole(server, said, path, status):
    """And then the connection does what the page says."""
    with Client(server.address) as client:
        client.send(GET % path)
        refusal(client, status)
        assert goes_on(client) == said[server.name]["after a 503"]


@pytest.mark.parametrize("path", [b"/edge", b"/inside"])
def test_head_has_the_length_and_no_body(server, said, path):
    """The next bytes are the next answer."""
    with Client(server.address) as client:
        client.send(b"HEAD %s HTTP/1.1\r\nhost: a\r\n\r\n" % path)
        refusal(client, head=True)
        assert goes_on(client) == said[server.name]["after a 503"]


@pytest.mark.parametrize("path", [b"/edge", b"/inside"])
def test_http_1_0_is_answered_and_closed(server, path):
    """A client of the last century gets its answer whole."""
    with Client(server.address) as client:
        client.send(b"GET %s HTTP/1.0\r\n\r\n" % path)
        refusal(client)
        assert client.ended()


@pytest.mark.parametrize("path", [b"/edge", b"/inside"])
def test_pipelined_requests_are_answered_in_turn(server, said, path):
    """All of them, or the first where the server closes: never a wrong one."""
    with Client(server.address) as client:
        client.send((GET % path + GET % b"/ok") * 3)
        for _ in range(3):
            refusal(client)
            if goes_on(client, sent=True) == "closes":
                assert said[server.name]["after a 503"] == "closes"
                break
        else:
            assert said[server.name]["after a 503"] == "keeps"


def test_cut_stream_is_cut(server):
    """A refusal in mid-stream ends the connection: no second answer, and fewer bytes than promised."""
    with Client(server.address) as client:
        client.send(GET % b"/cut")
        got = client.reader.read()
    if not got and server.name == "granian, WSGI":
        return  # it may close before it has sent the first piece
    assert got.startswith(b"HTTP/1.1 200")
    assert got.count(b"HTTP/1") == 1
    assert b"content-length: 8\r\n" in got.lower()
    assert got.endswith(b"\r\n\r\nfine")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (b"X-Criticality: SHEDDABLE", b"SHEDDABLE"),
        (b"X-Criticality: SHEDDABLE\r\nX-Criticality: CRITICAL_PLUS", b"CRITICAL"),
        (b"X_Criticality: CRITICAL_PLUS", b"CRITICAL"),
    ],
    ids=["said once", "said twice", "another name that WSGI spells alike"],
)
def test_only_the_trusted_header_says_how_much_a_request_matters(server, headers, expected):
    """A proxy takes away the header it knows; one that WSGI cannot tell from it is the server's to drop."""
    if server.name == "granian, WSGI" and headers.startswith(b"X_"):
        expected = b"CRITICAL_PLUS"  # it does not, and the page says so
    with Client(server.address) as client:
        client.send(b"GET /class HTTP/1.1\r\nhost: a\r\n%s\r\n\r\n" % headers)
        assert client.response()[::2] == (200, expected)


# --- bodies that nobody reads -------------------------------------------------------------------------

INNER = GET % b"/evil"
POST = b"POST %s HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n"


def send_in_background(client, data):
    """Sends more than fits into the buffers; a server that closes half-way is no error of the client's."""

    def send():
        with contextlib.suppress(OSError):
            client.send(data)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.parametrize("path", [b"/edge", b"/inside"])
def test_unread_body_is_never_a_request(server, said, path):
    """10 MB full of requests are skipped, or cut off with the connection."""
    with Client(server.address) as client:
        head = POST % (path, len(BODY_OF_10_MB))
        sender = send_in_background(client, head + BODY_OF_10_MB + GET % b"/ok")
        try:
            refusal(client)
            assert goes_on(client, sent=True) == said[server.name]["10 MB not read"]
        finally:
            with contextlib.suppress(OSError):
                client.socket.shutdown(socket.SHUT_RDWR)
            sender.join()
    assert "/evil" not in server.figures()["asked"]


@pytest.mark.parametrize("path", [b"/edge", b"/inside"])
def test_unread_chunks_are_never_a_request(server, path):
    """A chunked body with requests inside, and the next request in the same packet."""
    with Client(server.address) as client:
        client.send(
            b"POST %s HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n" % path
            + b"%x\r\n%b\r\n" % (len(INNER), INNER) * 3
            + b"0\r\n\r\n"
            + GET % b"/ok"
        )
        refusal(client)
        goes_on(client, sent=True)
    assert "/evil" not in server.figures()["asked"]


@pytest.mark.parametrize("path", [b"/edge", b"/inside"])
def test_body_that_comes_late_is_never_a_request(server, said, path):
    """The answer does not wait for the body, save where the page says so; what comes after it is a body."""
    with Client(server.address) as client:
        client.send(POST % (path, len(INNER)))
        if said[server.name]["calls the application"] == "at once":
            refusal(client)
            send_in_background(client, INNER + GET % b"/ok").join()
        else:
            client.socket.settimeout(0.5)
            with pytest.raises(TimeoutError):
                client.socket.recv(1)
            client.socket.settimeout(10)
            client.send(INNER + GET % b"/ok")
            refusal(client)
        goes_on(client, sent=True)
    assert "/evil" not in server.figures()["asked"]


EXPECTING = b"POST %s HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\nexpect: 100-continue\r\n\r\n"


@pytest.mark.parametrize("path", [b"/edge", b"/inside"])
def test_body_that_waits_for_leave(server, said, path):
    """The refusal comes instead of the 100, or after it; what is sent for is a body."""
    with Client(server.address) as client:
        client.send(EXPECTING % (path, len(INNER)))
        instead = client.reader.peek(12)[9:12] == b"503"
        assert said[server.name]["`Expect: 100-continue`"] == ("503" if instead else "100, then 503")
        if not instead:
            assert client.response()[0] == 100
            client.send(INNER)
        refusal(client)
        if instead:
            assert client.ended(), "a body may still come or not: only a closed connection is clear"
        else:
            goes_on(client)
    assert "/evil" not in server.figures()["asked"]


@pytest.mark.parametrize("path", [b"/edge", b"/inside"])
def test_body_sent_without_leave_is_never_a_request(server, path):
    """A client that did not wait for the 100 either."""
    with Client(server.address) as client:
        client.send(EXPECTING % (path, len(INNER)) + INNER)
        while client.reader.peek(12)[9:12] == b"100":
            client.response()
        refusal(client)
        goes_on(client)
    assert "/evil" not in server.figures()["asked"]


@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
def test_two_lengths_are_the_server_s_business(server, version):
    """A request that can be read in two ways is read in the same way whether it is refused or served."""
    followed = []
    for path in (b"/edge", b"/inside", b"/ok"):
        before = server.figures()["asked"].count("/smuggled")
        with Client(server.address) as client:
            client.send(
                b"POST %s %s\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
                % (path, version)
                + GET_AND_CLOSE % b"/smuggled"
            )
            client.ended()
        followed.append(server.figures()["asked"].count("/smuggled") - before)
    assert followed[0] == followed[1] == followed[2]


# --- what is no request ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ASGI)
def test_lifespan_is_the_application_s(servers, name):
    """It starts up once, though a guard is open from the beginning."""
    assert servers(name).figures()["lived"] == ["startup"]


@pytest.mark.parametrize("name", ASGI)
@pytest.mark.parametrize(("path", "status"), [(b"/edge", 503), (b"/inside", 503), (b"/late", 504)])
def test_handshake_is_refused(servers, name, path, status):
    """With the same answer as any request: all of these servers can say more than 403."""
    with Client(servers(name).address) as client:
        client.send(HANDSHAKE % path)
        refusal(client, status)


@pytest.mark.parametrize("name", ASGI)
def test_other_handshakes_are_accepted(servers, name):
    """And what is said then is the application's."""
    with Client(servers(name).address) as client:
        client.send(HANDSHAKE % b"/ok")
        assert client.response()[0] == 101
        assert client.reader.read(6) == b"\x81\x04fine"


# --- clients that leave --------------------------------------------------------------------------------


def nothing_is_inside(server):
    """Place and slot are back; asks until it is so."""

    def empty():
        figures = server.figures()
        return (figures["in_flight"], figures["in_use"]) == (0, 0)

    return empty


def test_client_that_leaves_a_stream_leaves_nothing(server):
    """The slot and the place come back, and the dependency is not blamed."""
    at_once = 1 if server.name == "gunicorn, sync" else 4
    clients = [Client(server.address) for _ in range(at_once)]
    try:
        for client in clients:
            client.send(GET % b"/stream")
        for client in clients:
            assert client.response()[0] == 200
            assert client.reader.read(1024)
    finally:
        for client in clients:
            client.__exit__()
    wait_until(nothing_is_inside(server), seconds=30)
    assert server.figures()["failed"] == 0


@pytest.mark.parametrize("path", [b"/edge", b"/inside", b"/ok"])
@pytest.mark.parametrize("body", [b"", b"half"], ids=["no body", "half a body"])
def test_client_that_leaves_its_body_leaves_nothing(server, path, body):
    """What was promised never comes: before the answer, or instead of reading it."""
    for _ in range(3):
        with Client(server.address) as client:
            client.send(POST % (path, 1000) + body)
    wait_until(nothing_is_inside(server), seconds=30)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["gunicorn, gthread", "waitress", "granian, WSGI"])
def test_slots_below_the_threads_keep_the_rest_alive(servers, name):
    """Five slots, eight threads, thirty calls that hang: the rest is refused, and others are served."""
    server = servers(name)
    clients = [Client(server.address) for _ in range(30)]
    try:
        for client in clients:
            client.send(GET % b"/slow")
        wait_until(lambda: server.figures()["slow"] == 5)
        began = time.monotonic()
        with Client(server.address) as bystander:
            bystander.send(GET % b"/ok")
            assert bystander.response()[::2] == (200, b"fine")
        assert time.monotonic() - began < 2.0
        answers = Counter(client.response()[0] for client in clients)
        assert set(answers) == {200, 503}
        # Five, and as many again should the machine have been asleep while the first five ran.
        assert 5 <= answers[200] <= 10
    finally:
        for client in clients:
            client.__exit__()


def test_server_still_serves(server):
    """After all that, in whatever order: a request is a request."""
    began = time.monotonic()
    with Client(server.address) as client:
        client.send(GET % b"/ok")
        assert client.response()[::2] == (200, b"fine")
    assert time.monotonic() - began < 10
