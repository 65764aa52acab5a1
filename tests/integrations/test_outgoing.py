"""The time left of a request, as headers for the next service, and as that service reads them."""

from __future__ import annotations

import pytest

from guardrails import ConfigurationError, deadline
from guardrails._http.answers import DEADLINE_HEADERS, budget
from guardrails.integrations.outgoing import outgoing_headers


def test_there_are_no_headers_without_a_deadline():
    """No header is better than an invented one."""
    assert outgoing_headers() == {}
    assert outgoing_headers("grpc-timeout") == {}


@pytest.mark.parametrize(
    ("left", "milliseconds"),
    [(1.5, 1500), (0.0019, 1), (0.0001, 1), (0.0, 1), (-3.0, 1), (86_400.0, 86_400_000), (1e8, 86_400_000)],
)
def test_the_time_left_is_rounded_down_and_at_least_a_millisecond(clock, left, milliseconds):
    """The time left is rounded down, and a spent deadline becomes 1 ms."""
    with deadline(left, clock=clock):
        assert outgoing_headers() == {"X-Request-Timeout-Ms": str(milliseconds)}
        assert outgoing_headers("Grpc-Timeout") == {"Grpc-Timeout": f"{milliseconds}m"}


@pytest.mark.parametrize("name", DEADLINE_HEADERS)
@pytest.mark.parametrize("left", [0.001, 0.25, 7.0, 86_400.0])
def test_the_middleware_reads_the_headers(clock, name, left):
    """The middleware on the other side reads the same time, to the millisecond."""
    with deadline(left, clock=clock):
        sent = [(key.encode(), value.encode()) for key, value in outgoing_headers(name).items()]
    assert budget(sent, {name.encode(): DEADLINE_HEADERS[name]}) == pytest.approx(left, abs=0.001)


@pytest.mark.parametrize("name", ["X-Timeout", "", None, 7, "X-Request-Timeout-Ms\r\nEvil: 1"])
def test_other_names_are_refused(name):
    """With the names that there are; also where there is no deadline, or it would show too late."""
    with pytest.raises(ConfigurationError, match="must be one of connect-timeout-ms"):
        outgoing_headers(name)
