"""HTTP/1 by hand: what goes over one TCP connection, byte by byte."""

from __future__ import annotations

import socket

GET = b"GET %s HTTP/1.1\r\nhost: a\r\n\r\n"

HANDSHAKE = (
    b"GET %s HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)

BODY_OF_10_MB = (GET % b"/evil").ljust(64, b".") * 160_000
"""A server that took it for requests would serve the first line of each."""


class Client:
    """One TCP connection, with HTTP responses read one after the other."""

    def __init__(self, address):
        self.socket = socket.create_connection(address, timeout=10)
        self.reader = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.reader.close()
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def response(self, *, head=False):
        """The next response: status, headers, body."""
        line = self.reader.readline()
        assert line.startswith(b"HTTP/1."), line
        headers = {}
        while (header := self.reader.readline()) not in {b"\r\n", b""}:
            name, _, value = header.decode("latin-1").partition(":")
            assert name.lower() not in headers, f"{name} twice"
            headers[name.lower()] = value.strip()
        body = b"" if head else self.reader.read(int(headers.get("content-length", 0)))
        return int(line.split()[1]), headers, body

    def ended(self):
        """Whether the server has closed the connection and left nothing on it."""
        try:
            return self.reader.read() == b""
        except ConnectionResetError:
            return True
