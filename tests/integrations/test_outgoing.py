"""What is left of a request's time, told to the next service, and read again by it."""

from __future__ import annotations

import pytest

from guardrails import ConfigurationError, deadline
from guardrails._http.answers import DEADLINE_HEADERS, budget
from guardrails.integrations.outgoing import outgoing_headers


def test_without_a_deadline_there_is_nothing_to_say():
    """No header is better than an invented one."""
    assert outgoing_headers() == {}
    assert outgoing_headers("grpc-timeout") == {}


@pytest.mark.parametrize(
    ("left", "milliseconds"),
    [(1.5, 1500), (0.0019, 1), (0.0001, 1), (0.0, 1), (-3.0, 1), (86_400.0, 86_400_000), (1e8, 86_400_000)],
)
def test_it_is_rounded_down_and_never_nothing(clock, left, milliseconds):
    """A budget may only shrink on its way; a spent one is stated as the least there is."""
    with deadline(left, clock=clock):
        assert outgoing_headers() == {"X-Request-Timeout-Ms": str(milliseconds)}
        assert outgoing_headers("Grpc-Timeout") == {"Grpc-Timeout": f"{milliseconds}m"}


@pytest.mark.parametrize("name", DEADLINE_HEADERS)
@pytest.mark.parametrize("left", [0.001, 0.25, 7.0, 86_400.0])
def test_what_is_said_is_understood(clock, name, left):
    """The middleware on the other side reads the same time, to the millisecond."""
    with deadline(left, clock=clock):
        sent = [(key.encode(), value.encode()) for key, value in outgoing_headers(name).items()]
    assert budget(sent, {name.encode(): DEADLINE_HEADERS[name]}) == pytest.approx(left, abs=0.001)


@pytest.mark.parametrize("name", ["X-Timeout", "", None, 7, "X-Request-Timeout-Ms\r\nEvil: 1"])
def test_other_names_are_refused(name):
    """With the names that there are; also where there is no deadline, or it would show too late."""
    with pytest.raises(ConfigurationError, match="must be one of connect-timeout-ms"):
        outgoing_headers(name)
