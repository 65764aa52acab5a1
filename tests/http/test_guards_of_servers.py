"""Requests that require a guard that stands for several servers, as that of a cluster client."""

from __future__ import annotations

import json

import pytest

from guardrails import BreakerPolicy
from guardrails._guard.compartments import compartment_of_server, guard_of_servers
from guardrails.integrations.asgi import GuardrailsMiddleware
from guardrails.integrations.wsgi import GuardrailsMiddleware as WSGIGuardrails
from support import asgi_client, wsgi_client
from support.calls import Boom, boom

OPEN = BreakerPolicy(consecutive_failures=1, wait_duration_in_open_state=10, open_jitter=0)
NAMES = ("10.0.0.1:7000", "10.0.0.2:7000", "10.0.0.3:7000")


class Servers:
    """Three servers, of which calls go to the first two."""

    def __init__(self, clock, **options):
        self.guard, policy = guard_of_servers(
            "shards", 30, None, {"clock": clock, "breaker": OPEN, **options}
        )
        self.parts = [compartment_of_server(self.guard, name, 10, policy) for name in NAMES]
        self.gate = self.guard.call_settings.gates[-1]
        self.gate.servers = lambda: [part.call_settings.gates[0] for part in self.parts[:2]]

    def fail(self, number):
        with pytest.raises(Boom):
            self.parts[number].run(boom)

    def rejected(self):
        return self.guard.snapshot().rejected


@pytest.fixture
def servers(clock):
    return Servers(clock)


@pytest.fixture(params=["asgi", "wsgi"])
def ask(request):
    """Makes a request that requires a guard, and returns its status, headers and body."""

    def of_asgi(guard):
        app = GuardrailsMiddleware(asgi_client.fine, requires=[guard], random=lambda: 0.0)
        answer = asgi_client.ask(app)
        return answer.status, answer.headers, answer.body

    def of_wsgi(guard):
        app = WSGIGuardrails(wsgi_client.fine, requires=[guard], random=lambda: 0.0)
        answer = wsgi_client.ask(app)
        return answer.status, answer.headers, b"".join(answer.pieces)

    return of_asgi if request.param == "asgi" else of_wsgi


def test_a_request_is_refused_while_the_circuits_of_all_servers_are_open(ask, servers, clock):
    servers.fail(0)
    assert ask(servers.guard)[0] == 200
    clock.advance(4)
    servers.fail(1)
    status, headers, body = ask(servers.guard)
    assert (status, headers["retry-after"]) == (
        503,
        "6",
    )  # the first one admits calls again after six seconds
    problem = json.loads(body)
    assert (problem["code"], problem["guard"], problem["retry_after"]) == ("circuit_open", "shards", 6)
    assert servers.rejected() == {"circuit_open": 1}
    assert [part.snapshot().rejected for part in servers.parts] == [{}, {}, {}]
    clock.advance(6)
    assert ask(servers.guard)[0] == 200
    assert servers.guard.snapshot().in_use == 0


def test_a_server_that_was_opened_by_hand_has_no_time(ask, servers):
    servers.parts[0].force_open()
    assert ask(servers.guard)[0] == 200
    servers.fail(1)
    assert ask(servers.guard)[1]["retry-after"] == "10"
    servers.parts[1].force_open()
    status, headers, _ = ask(servers.guard)
    assert status == 503
    assert "retry-after" not in headers


def test_no_server_is_no_reason_to_refuse(ask, servers):
    servers.parts.clear()
    assert ask(servers.guard)[0] == 200


def test_in_shadow_the_request_is_let_in(ask, clock):
    servers = Servers(clock)
    servers.fail(0)
    servers.fail(1)
    servers.guard.set_mode("shadow")
    assert ask(servers.guard)[0] == 200


def test_a_requirement_of_one_server_follows_that_server(ask, servers):
    servers.fail(0)
    status, _, body = ask(servers.parts[0])
    assert status == 503
    assert b"10.0.0" not in body  # an address is not for the client
    assert json.loads(body)["guard"] == "shards"
    assert ask(servers.parts[1])[0] == 200
