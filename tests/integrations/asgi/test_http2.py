"""Early answers over HTTP/2: the other requests on the same connection go on."""

from __future__ import annotations

import asyncio
import socket
import time

import h2.config
import h2.connection
import h2.events
import pytest

from guardrails import Guard
from guardrails._http.asgi_request import UnreadBody
from guardrails.integrations.asgi import GuardrailsMiddleware
from support import asgi_client
from support.server_process import Server


class Client2:
    """Several requests on one HTTP/2 connection, without TLS."""

    def __init__(self, address):
        self.socket = socket.create_connection(address, timeout=20)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.status = {}
        self.ended = set()
        self.h2.initiate_connection()
        self._flush()

    def ask(self, method, path, *, end):
        stream = self.h2.get_next_available_stream_id()
        names = (":method", method), (":path", path), (":scheme", "http"), (":authority", "a")
        self.h2.send_headers(stream, [*names], end_stream=end)
        self._flush()
        return stream

    def send(self, stream, data, *, end=False):
        while data or end:
            size = min(len(data), self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if data and not size:
                self._read()
                continue
            piece, data = data[:size], data[size:]
            self.h2.send_data(stream, piece, end_stream=end and not data)
            self._flush()
            end = end and bool(data)

    def until(self, done, seconds=15):
        """Reads until something has happened; says whether the connection was still there by then."""
        limit = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < limit, (self.status, self.ended)
            if not self._read():
                return False
        return True

    def _read(self):
        data = self.socket.recv(65536)
        for event in self.h2.receive_data(data) if data else ():
            if isinstance(event, h2.events.ResponseReceived):
                self.status[event.stream_id] = int(dict(event.headers)[b":status"])
            elif isinstance(event, h2.events.StreamEnded):
                self.ended.add(event.stream_id)
        self._flush()
        return bool(data)

    def _flush(self):
        self.socket.sendall(self.h2.data_to_send())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()


@pytest.fixture(scope="module")
def hypercorn(tmp_path_factory):
    log = tmp_path_factory.mktemp("hypercorn") / "log"
    server = Server("hypercorn", "hypercorn server_apps:asgi --bind 127.0.0.1:{port}", log).wait()
    yield server
    server.stop()


@pytest.mark.parametrize("path", ["/edge", "/inside"])
@pytest.mark.parametrize("size", [0, 10, 300_000])
def test_refused_upload_leaves_its_neighbours_alone(hypercorn, path, size):
    """Its body comes after everything that a refusal needs; the connection serves the next request, too."""
    with Client2(hypercorn.address) as client:
        upload = client.ask("POST", path, end=False)
        neighbour = client.ask("GET", "/ok", end=True)
        assert client.until(lambda: neighbour in client.ended)
        client.send(upload, bytes(size), end=True)
        assert client.until(lambda: upload in client.ended)
        assert (client.status[upload], client.status[neighbour]) == (503, 200)
        again = client.ask("GET", "/ok", end=True)
        assert client.until(lambda: again in client.ended)
        assert client.status[again] == 200


def test_body_that_does_not_come_is_not_waited_for_longer(hypercorn):
    """The answer comes after a second at the latest."""
    with Client2(hypercorn.address) as client:
        began = time.monotonic()
        upload = client.ask("POST", "/edge", end=False)
        assert client.until(lambda: upload in client.status)
        assert UnreadBody.TIMEOUT - 0.1 < time.monotonic() - began < UnreadBody.TIMEOUT + 5
        assert client.status[upload] == 503


def test_request_without_a_body_is_answered_at_once(hypercorn):
    """There is nothing to wait for."""
    with Client2(hypercorn.address) as client:
        began = time.monotonic()
        refused = client.ask("GET", "/edge", end=True)
        assert client.until(lambda: refused in client.ended)
        assert client.status[refused] == 503
        assert time.monotonic() - began < UnreadBody.TIMEOUT


# --- in process --------------------------------------------------------------------------------------


def piece(size, *, more=True):
    return {"type": "http.request", "body": bytes(size), "more_body": more}


def refused(version, incoming, *, read=0):
    """How many messages of a body are received for a refused request, of which the application reads some."""
    db = Guard("db", max_concurrent_calls=1)
    db.force_open()

    async def app(_scope, receive, _send):
        for _ in range(read):
            await receive()
        db.run(len, "x")

    options = {} if read else {"requires": [db]}
    scope = asgi_client.http("/", method="POST", http_version=version)
    seen = asgi_client.ask(GuardrailsMiddleware(app, **options), scope, incoming=incoming)
    assert seen.status == 503
    return seen.received


@pytest.mark.parametrize(
    ("incoming", "received"),
    [
        ([piece(0, more=False)], 1),
        ([piece(9), piece(9), piece(0, more=False)], 3),
        ([piece(9), {"type": "http.disconnect"}, piece(9)], 2),
        ([piece(UnreadBody.MAX_BYTES // 2)] * 9, 2),
        ([piece(UnreadBody.MAX_BYTES)] * 9, 1),
    ],
)
@pytest.mark.parametrize("version", ["2", "3"])
def test_small_body_is_read_before_an_early_answer(version, incoming, received):
    """To its end, or to a bound."""
    assert refused(version, incoming) == received


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_body_over_http_1_is_left_to_the_server(version):
    """Which skips it, or closes the connection that nobody else uses."""
    assert refused(version, [piece(9), piece(0, more=False)]) == 0


def test_body_that_the_application_has_read_is_not_asked_for_again():
    """It would be the client's end that is waited for."""
    assert refused("2", [piece(9), piece(0, more=False)], read=2) == 2
    assert refused("2", [piece(9), piece(9), piece(0, more=False)], read=1) == 3


def test_refusal_of_a_request_that_is_cancelled_meanwhile_is_not_sent():
    """A server that stops does not wait for a body."""
    db = Guard("db", max_concurrent_calls=1)
    db.force_open()

    async def main():
        app = GuardrailsMiddleware(asgi_client.fine, requires=[db])
        scope = asgi_client.http("/", method="POST", http_version="2")
        task = await asgi_client.start(app, scope, incoming=[piece(9)])
        await asgi_client.cancel(task)
        assert task.cancelled()

    asyncio.run(main())
