"""What is done below a driver, to its descriptor."""

from __future__ import annotations

import os
import socket

import pytest

from guardrails._dbapi.drivers.sockets import client_port, cut, identity_of


@pytest.fixture
def pair():
    """Two TCP sockets that are connected, and a second pair."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ends = []
        for _ in range(2):
            ends.append(socket.create_connection(listener.getsockname()))
            ends.append(listener.accept()[0])
    yield ends
    for end in ends:
        end.close()


def is_open(end, other):
    other.settimeout(0.1)
    end.sendall(b"x")
    return other.recv(1) == b"x"


def test_a_socket_that_is_cut_ends_its_read(pair):
    ours, theirs, *_ = pair
    known = identity_of(ours.fileno())
    cut(ours.fileno(), known)
    assert (ours.recv(1), theirs.recv(1)) == (b"", b"")


def test_a_descriptor_that_is_another_socket_by_now_is_left_alone(pair):
    ours, _, others, their_end = pair
    known, number = identity_of(ours.fileno()), ours.fileno()
    os.dup2(others.fileno(), number)
    cut(number, known)
    assert is_open(others, their_end)
    cut(number, identity_of(number))
    assert their_end.recv(1) == b""


def test_a_descriptor_that_is_a_file_by_now_is_left_alone(pair, tmp_path):
    """And no descriptor of ours stays open."""
    ours = pair[0]
    known, number = identity_of(ours.fileno()), ours.detach()
    with (tmp_path / "file").open("w") as file:
        os.dup2(file.fileno(), number)
    lowest = os.dup(number)
    os.close(lowest)
    for _ in range(5):
        cut(number, known)
        with pytest.raises(OSError, match="socket"):
            client_port(number)
    again = os.dup(number)
    os.close(again)
    assert again == lowest, "the lowest free number is as low as before"
    os.close(number)
    cut(number, known)


def test_two_sockets_are_never_taken_for_one(pair):
    assert len({identity_of(end.fileno()) for end in pair}) == 4
