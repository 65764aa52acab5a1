"""What probes are told, when a process is unready, and who may steer."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from contextlib import ExitStack
from wsgiref.validate import validator

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Mount

from guardrails import ConfigurationError, Guard, GuardSnapshot
from guardrails._guard.compartments import compartment_of_server, drop_compartment, guard_of_servers
from guardrails._http import status as _status
from guardrails._http.settings import StatusSettings
from guardrails._http.status import Probes
from guardrails._util.checks import Faults
from guardrails.integrations import starlette, wsgi
from guardrails.integrations.asgi import GuardrailsMiddleware
from support import wsgi_client
from support.asgi_client import ask, http

MOVES = {
    "force-open": "forced_open",
    "disable": "disabled",
    "metrics-only": "metrics_only",
    "reset": "closed",
}


class OnStarlette:
    """Visits the Starlette application."""

    def __init__(self, guards, **options):
        self.app = starlette.status_app(guards, **options)

    def get(self, path, method="GET"):
        seen = ask(self.app, http(path, method=method))
        return seen.status, seen.headers, seen.body


class OnWSGI:
    """Visits its WSGI twin, with the PEP 3333 validator around it."""

    def __init__(self, guards, **options):
        self.app = wsgi.status_app(guards, **options)

    def get(self, path, method="GET"):
        seen = wsgi_client.ask(validator(self.app), wsgi_client.environment(path, method=method))
        assert seen.raised is None
        return seen.status, seen.headers, seen.body


@pytest.fixture(params=[OnStarlette, OnWSGI])
def pages(request, clock):
    """Makes a status application of either kind and says what is on its pages."""

    def make(guards, **options):
        return request.param(guards, **({"clock": clock} | options))

    return make


def ready(site):
    """What ``/readyz`` says: True, or the reasons why not."""
    status, _, body = site.get("/readyz")
    said = json.loads(body)
    assert (status == 200) is said["ready"] is (not said["reasons"])
    return said["ready"] or said["reasons"]


def hold(guard, slots):
    """Takes slots until the returned stack is closed."""
    held = ExitStack()
    for _ in range(slots):
        held.enter_context(guard.call())
    return held


# --- reading ---------------------------------------------------------------------------------------


def test_live_is_always_live(pages, make_guard):
    """It looks at nothing, whatever the guards say."""
    db = make_guard(max_concurrent_calls=1)
    db.force_open()
    status, headers, body = pages([db]).get("/livez")
    assert (status, json.loads(body)) == (200, {"live": True})
    assert headers["cache-control"] == "no-store"
    assert headers["content-type"] == "application/json"


def test_status_shows_every_figure(pages, make_guard):
    """Names and numbers of each guard and its compartments, and nothing else."""
    db = make_guard(max_concurrent_calls=10)
    reports = db.compartment("reports")
    reports.run(len, "x")
    said = json.loads(pages([db]).get("/status.json")[2])
    assert (said["ready"], said["reasons"]) == (True, [])
    (shown,) = said["guards"]
    assert set(shown) == {*GuardSnapshot.__slots__, "compartments", "shadow"}
    assert (shown["name"], shown["admitted"], shown["max_concurrent_calls"]) == ("db", 1, 10)
    assert [part["name"] for part in shown["compartments"]] == ["reports"]


def test_status_lists_variables_of_guards_that_were_not_made(pages, make_guard, monkeypatch):
    """One that sets something of the guard on the page has its effect."""
    monkeypatch.setenv("GUARDRAILS_SPARE_TIMEOUT", "3")
    monkeypatch.setenv("GUARDRAILS_SPARES_MODE", "shadow")
    guard = Guard("spare", max_concurrent_calls=1)
    assert guard.timeout == 3
    seen = json.loads(pages([guard]).get("/status.json")[2])["unused_variables"]
    assert ("GUARDRAILS_SPARES_MODE" in seen, "GUARDRAILS_SPARE_TIMEOUT" in seen) == (True, False)


def test_hostile_names_stay_text(pages, make_guard):
    """In JSON, and without a tag for clients that guess."""
    name = "</script><script>\r\n\ud800"
    _, headers, body = pages([make_guard(name)]).get("/status.json")
    assert json.loads(body)["guards"][0]["name"] == name
    assert not set(body) & set(b"<\r")
    assert rb"\u003c/script>\u003cscript>\r\n\ud800" in body, "on one line"
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/status.json"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_pages_are_only_to_be_read(pages, make_guard, path, method):
    """Nothing changes by asking."""
    assert pages([make_guard()]).get(path, method)[0] == 405


def test_head_has_the_length(pages, make_guard):
    """For load balancers that ask with HEAD."""
    probes = pages([make_guard()])
    status, headers, _ = probes.get("/livez", "HEAD")
    assert (status, int(headers["content-length"])) == (200, len(probes.get("/livez")[2]))


def test_pages_are_made_to_be_read(pages, make_guard):
    """In a terminal, by somebody who was woken up: a figure on each line, and an end of the last."""
    body = pages([make_guard("db")]).get("/status.json")[2]
    assert b'\n      "state": "closed",\n' in body
    assert body.endswith(b"\n}\n")


def test_status_of_a_thousand_guards_costs_what_has_changed(make_guard, clock, monkeypatch):
    """Only a guard whose figures are others than the last time is written anew."""
    guards = [make_guard(f"guard {number}") for number in range(1000)]
    part = guards[3].compartment("part")
    probes = Probes(StatusSettings.checked(Faults("test"), {"guards": guards, "clock": clock}))
    written = []
    write = _status.as_json
    monkeypatch.setattr(
        _status, "as_json", lambda fields, **how: written.append(fields) or write(fields, **how)
    )
    first = json.loads(probes.status().body)
    assert len(written) == 1 + 1001
    written.clear()
    assert json.loads(probes.status().body) == first
    assert len(written) == 1
    part.run(len, "x")
    written.clear()
    shown = json.loads(probes.status().body)["guards"]
    assert [fields["name"] for fields in written[:-1]] in (["part", "guard 3"], ["guard 3", "part"])
    assert shown[3]["succeeded"] == shown[3]["compartments"][0]["succeeded"] == 1
    assert [guard["name"] for guard in shown] == [guard.name for guard in guards]


def test_other_pages_are_not_there(pages, make_guard):
    """Without auth there is nothing to steer, under any method."""
    site = pages([make_guard()])
    for method in ("GET", "POST"):
        assert site.get("/control/db/force-open", method)[0] == 404
        assert site.get("/other", method)[0] == 404


# --- readiness -------------------------------------------------------------------------------------


@pytest.mark.parametrize("move", ["force_open", "disable", "metrics_only"])
def test_circuit_is_no_reason_to_leave(pages, make_guard, move):
    """The other processes see the same dependency; all of them would leave at once."""
    db = make_guard()
    getattr(db, move)()
    assert ready(pages([db])) is True


def test_full_pool_that_moves_is_ready(pages, make_guard, clock):
    """Busy is not stuck: one slot that comes back in time is enough."""
    db = make_guard(max_concurrent_calls=2)
    site = pages([db], stuck_after=30)
    with hold(db, 1):
        for _ in range(10):
            with hold(db, 1):
                assert ready(site) is True
                clock.advance(25)
                assert ready(site) is True


def test_full_pool_that_stands_still_is_not_ready(pages, make_guard, clock):
    """Not one slot came back for so long: nothing will, and this process alone is at fault."""
    db = make_guard(max_concurrent_calls=2)
    site = pages([db], stuck_after=30)
    with hold(db, 2):
        assert ready(site) is True
        clock.advance(29.9)
        assert ready(site) is True
        clock.advance(0.1)
        assert ready(site) == ["stuck: db"]
        assert json.loads(site.get("/status.json")[2])["ready"] is False


def test_quiet_pool_that_fills_is_ready(pages, make_guard, clock):
    """Nothing came back for an hour because nothing was out."""
    db = make_guard(max_concurrent_calls=1)
    site = pages([db], stuck_after=30)
    assert ready(site) is True
    clock.advance(3600)
    with hold(db, 1):
        assert ready(site) is True


def test_slot_that_came_back_between_two_readings_counts(pages, make_guard, clock):
    """Full at both, but not all the time."""
    db = make_guard(max_concurrent_calls=1)
    site = pages([db], stuck_after=30)
    with hold(db, 1):
        assert ready(site) is True
        clock.advance(30)
    with hold(db, 1):
        assert ready(site) is True


def test_ready_again_only_after_a_while(pages, make_guard, clock):
    """A pool that limps does not come and go with every probe: a third of the time without a full moment."""
    db = make_guard(max_concurrent_calls=1)
    site = pages([db], stuck_after=30)
    held = hold(db, 1)
    ready(site)
    clock.advance(30)
    assert ready(site) == ["stuck: db"]
    held.close()
    clock.advance(9)
    assert ready(site) == ["stuck: db"]
    with hold(db, 1):
        assert ready(site) == ["stuck: db"]
    clock.advance(9)
    assert ready(site) == ["stuck: db"]
    clock.advance(1)
    assert ready(site) is True


def test_open_circuit_excuses_a_stuck_pool(pages, make_guard, clock):
    """The dependency is at fault, so there is nothing to gain by leaving."""
    db = make_guard(max_concurrent_calls=1)
    site = pages([db], stuck_after=30)
    with hold(db, 1):
        ready(site)
        clock.advance(30)
        assert ready(site) == ["stuck: db"]
        db.force_open()
        assert ready(site) is True
        db.reset()
        assert ready(site) is True
        clock.advance(30)
        assert ready(site) == ["stuck: db"]


def test_compartment_alone_is_no_reason(pages, make_guard, clock):
    """One workload that hangs is what compartments are for."""
    db = make_guard(max_concurrent_calls=10)
    reports = db.compartment("reports", max_concurrent_calls=2)
    site = pages([db], stuck_after=30)
    with hold(reports, 2):
        ready(site)
        clock.advance(60)
        assert ready(site) is True


def test_one_stuck_server_of_a_cluster_is_a_reason(pages, clock):
    """Siblings serve the keys of that server; the other servers have slots of their own."""
    shards, policy = guard_of_servers("shards", 4, None, {"clock": clock})
    first, _ = (compartment_of_server(shards, name, 2, policy) for name in ("a:1", "b:1"))
    site = pages([shards], stuck_after=30)
    with hold(first, 2):
        assert ready(site) is True
        clock.advance(30)
        assert ready(site) == ["stuck: shards/a:1"]
        drop_compartment(shards, first)  # it has left the cluster
        assert ready(site) is True


def test_open_circuits_of_all_servers_excuse_a_full_cluster(pages, clock):
    """The cluster is at fault, so its guard without a circuit is no reason to leave."""
    shards, policy = guard_of_servers("shards", 4, None, {"clock": clock})
    parts = [compartment_of_server(shards, name, 2, policy) for name in ("a:1", "b:1")]
    site = pages([shards], stuck_after=30)
    with hold(parts[0], 2), hold(parts[1], 2):
        assert ready(site) is True
        for part in parts:
            part.force_open()
        assert shards.state == "disabled"
        clock.advance(60)
        assert ready(site) is True
        parts[1].reset()
        assert ready(site) is True
        clock.advance(30)
        assert ready(site) == ["stuck: shards/b:1"]


def test_draining_is_not_ready(pages, make_guard, clock, caplog):
    """The process says itself that it leaves; each change is logged once, however often it is asked."""
    db = make_guard(max_concurrent_calls=1)
    site = pages([db], stuck_after=30)
    with caplog.at_level(logging.WARNING, logger="guardrails"), hold(db, 1):
        ready(site)
        clock.advance(30)
        assert ready(site) == ready(site) == ["stuck: db"]
        site.app.drain()
        assert ready(site) == ready(site) == ["draining", "stuck: db"]
    assert [record.getMessage() for record in caplog.records] == [
        "readiness: 'stuck: db'",
        "readiness: 'draining'; 'stuck: db'",
    ]


def test_drained_process_still_lives(pages, make_guard):
    """Or it would be killed before its last requests have ended."""
    site = pages([make_guard()])
    site.app.drain()
    assert site.get("/livez")[0] == 200


# --- steering --------------------------------------------------------------------------------------


def steer(app, path, method="POST", headers=()):
    """Asks for a move."""
    return ask(app, http(path, method=method, headers=headers))


async def asynchronous(request):
    """An auth that could ask somebody."""
    await asyncio.sleep(0)
    return request.headers.get("x-key") == "open"


AUTHS = {"sync": lambda request: request.headers.get("x-key") == "open", "async": asynchronous}
KEY = [("x-key", "open")]


@pytest.fixture(params=AUTHS.values(), ids=AUTHS)
def auth(request):
    """Lets in who has the key."""
    return request.param


@pytest.mark.parametrize(("move", "state"), MOVES.items())
def test_steering(make_guard, auth, move, state):
    """Each move does what its name says, to guards and compartments, and shows the result."""
    db = make_guard()
    reports = db.compartment("reports")
    app = starlette.status_app([db], auth=auth)
    for guard in (db, reports):
        guard.force_open() if move == "reset" else guard.reset()
        seen = steer(app, f"/control/{guard.name}/{move}", headers=KEY)
        assert (seen.status, json.loads(seen.body)["state"], guard.state) == (200, state, state)


@pytest.mark.parametrize("headers", [[], [("x-key", "wrong")]])
@pytest.mark.parametrize("path", ["/control/db/force-open", "/control/none/force-open", "/control/db/none"])
def test_who_is_not_allowed_learns_nothing(make_guard, auth, path, headers):
    """The same answer whether the guard is there or not."""
    db = make_guard()
    seen = steer(starlette.status_app([db], auth=auth), path, headers=headers)
    assert (seen.status, json.loads(seen.body)) == (403, {"error": "not allowed"})
    assert db.state == "closed"


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_other_sites_cannot_steer_a_browser(make_guard, auth, site):
    """Not even with what the browser is logged in with."""
    db = make_guard()
    app = starlette.status_app([db], auth=auth)
    seen = steer(app, "/control/db/force-open", headers=[*KEY, ("sec-fetch-site", site)])
    assert (seen.status, db.state) == (403, "closed")


HTTPS, HTTP = "https://ops.example", "http://ops.example"


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        (HTTPS, "ops.example", True),
        (HTTP, "ops.example", True),
        (HTTPS, "ops.example:443", True),
        (HTTP, "ops.example:80", True),
        ("HTTPS://OPS.Example", "ops.EXAMPLE", True),
        ("http://ops.example:8000", "ops.example:8000", True),
        ("http://[2001:DB8::1]:8000", "[2001:db8::1]:8000", True),
        ("http://[2001:db8::1]", "[2001:db8::1]", True),
        ("https://evil.example", "ops.example", False),
        ("https://ops.example.evil.example", "ops.example", False),
        ("https://evil-ops.example", "ops.example", False),
        ("http://ops.example:8001", "ops.example:8000", False),
        ("http://ops.example", "ops.example:8000", False),
        (HTTP, "ops.example:443", False),
        ("https://ops.example@evil.example", "ops.example", False),
        ("https://ops.example/", "ops.example", False),
        ("http://[2001:db8::1]:8000", "[2001:db8::2]:8000", False),
        ("null", "ops.example", False),
        ("null", "null", False),
        ("", "ops.example", False),
        ("", "", False),
        ("https://", "", False),
    ],
)
def test_origin_is_compared_with_the_host_where_a_browser_says_no_more(
    make_guard, auth, origin, host, allowed
):
    """Older browsers send no Sec-Fetch-Site, and an Origin with every POST."""
    db = make_guard()
    app = starlette.status_app([db], auth=auth)
    seen = steer(app, "/control/db/force-open", headers=[*KEY, ("origin", origin), ("host", host)])
    assert (seen.status, db.state) == ((200, "forced_open") if allowed else (403, "closed"))


@pytest.mark.parametrize(
    "headers",
    [
        [("origin", HTTPS)],
        [("origin", HTTPS), ("origin", "https://evil.example"), ("host", "ops.example")],
        [("origin", HTTPS), ("host", "ops.example"), ("host", "evil.example")],
    ],
)
def test_origin_that_cannot_be_compared_is_foreign(make_guard, auth, headers):
    """There is none of the two, or more than one."""
    db = make_guard()
    seen = steer(starlette.status_app([db], auth=auth), "/control/db/force-open", headers=[*KEY, *headers])
    assert (seen.status, db.state) == (403, "closed")


def test_browser_that_says_same_origin_is_believed_behind_a_proxy(make_guard, auth):
    """The proxy may have changed the host."""
    headers = [*KEY, ("sec-fetch-site", "same-origin"), ("origin", HTTPS), ("host", "10.0.0.7:8000")]
    assert (
        steer(starlette.status_app([make_guard()], auth=auth), "/control/db/reset", headers=headers).status
        == 200
    )


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
def test_only_post_steers(make_guard, auth, method):
    """Nothing that crawlers and previews send."""
    db = make_guard()
    app = starlette.status_app([db], auth=auth)
    assert steer(app, "/control/db/force-open", method, KEY).status == 405
    assert db.state == "closed"


def test_what_is_not_there(make_guard, auth):
    """Guards and moves that do not exist are named as such."""
    app = starlette.status_app([make_guard()], auth=auth)
    assert steer(app, "/control/none/reset", headers=KEY).status == 404
    unknown = steer(app, "/control/db/explode", headers=KEY)
    assert (unknown.status, "force-open" in json.loads(unknown.body)["error"]) == (404, True)


def test_two_guards_of_one_name_are_not_guessed_between(make_guard, auth):
    """Neither is touched."""
    one, other = make_guard("db"), make_guard("db")
    assert (
        steer(starlette.status_app([one, other], auth=auth), "/control/db/force-open", headers=KEY).status
        == 409
    )
    assert (one.state, other.state) == ("closed", "closed")


def test_name_with_a_slash_can_be_steered(make_guard, auth):
    """A guard may have any name."""
    db = make_guard("shop/db")
    assert steer(starlette.status_app([db], auth=auth), "/control/shop/db/disable", headers=KEY).status == 200
    assert db.state == "disabled"


def test_auth_that_fails_allows_nothing(make_guard):
    """An HTTPException is the answer; any other error is the application's 500."""
    db = make_guard()

    def challenge(_request):
        raise HTTPException(401, headers={"www-authenticate": "Basic"})

    def broken(_request):
        raise RuntimeError

    seen = steer(starlette.status_app([db], auth=challenge), "/control/db/force-open")
    assert (seen.status, seen.headers["www-authenticate"]) == (401, "Basic")
    seen = steer(starlette.status_app([db], auth=broken), "/control/db/force-open")
    assert (seen.status, type(seen.raised), db.state) == (500, RuntimeError, "closed")


def test_reading_needs_no_auth(make_guard):
    """Probes have no key, and the pages show no secret."""
    app = starlette.status_app([make_guard()], auth=lambda _request: False)
    assert [ask(app, http(path)).status for path in ("/livez", "/readyz", "/status.json")] == [200] * 3


# --- mounted ---------------------------------------------------------------------------------------


def test_slash_at_the_end_is_no_other_page(make_guard):
    """Some routers add one to what they mount; a probe is not redirected."""
    assert ask(starlette.status_app([make_guard()]), http("/readyz/")).status == 200


def test_mounted_under_a_full_service_it_answers(make_guard):
    """The mount is exempt, so probes are answered while everything else is refused."""
    db = make_guard()
    db.force_open()
    app = Starlette(routes=[Mount("/internal", starlette.status_app([db]))])
    app.add_middleware(GuardrailsMiddleware, requires={"/": [db]}, exempt=["/internal"])
    assert ask(app, http("/orders")).status == 503
    assert ask(app, http("/internal/livez")).status == 200
    assert ask(app, http("/internal/readyz")).status == 200


@pytest.mark.parametrize("make", [starlette.status_app, wsgi.status_app])
def test_wrong_settings_are_named(make):
    """All that is wrong, with what is allowed."""
    with pytest.raises(
        ConfigurationError, match=r"guards must be a list of Guard objects.*stuck_after must be"
    ):
        make("db", stuck_after=0)
    with pytest.raises(ConfigurationError, match="guards must be"):
        make([Guard])


def test_auth_must_be_callable():
    """A password is no auth."""
    with pytest.raises(ConfigurationError, match="auth must be callable or None"):
        starlette.status_app([], auth="secret")


def test_missing_starlette_is_named():
    """The error says what to install; the WSGI twin needs none of it."""
    code = (
        "import sys; sys.modules['starlette'] = None; import guardrails.integrations.wsgi\n"
        "try: import guardrails.integrations.starlette\n"
        "except ImportError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "pip install 'guardrails-db[starlette]'" in run.stdout
