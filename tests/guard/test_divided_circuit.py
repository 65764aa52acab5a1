"""An open circuit goes over to the first compartment when a second one is formed."""

from __future__ import annotations

import pytest

sqlalchemy = pytest.importorskip("sqlalchemy")

from guardrails import BreakerPolicy, protect  # noqa: E402
from guardrails.events import StateChanged  # noqa: E402


def test_the_cause_of_a_circuit_that_goes_over_to_a_compartment_is_not_manual(caplog):
    """Its transition says so, to the listeners and in the log."""
    heard = []

    class Listener:
        events = (StateChanged,)

        def __call__(self, event):
            heard.append((event.guard, event.old, event.new, event.cause))

    engine = sqlalchemy.create_engine("sqlite:////nonexistent/directory/shop.db")
    policy = BreakerPolicy(minimum_number_of_calls=1, wait_duration_in_open_state=60)
    db = protect(engine, name="db", breaker=policy, listeners=[Listener()])
    with pytest.raises(sqlalchemy.exc.OperationalError):
        engine.connect()
    assert db.state == "open"
    reports = db.compartment("reports")
    with reports.call():
        assert reports.state == "closed"
    causes = [cause for *_, cause in heard]
    assert causes[0] == "failure_rate"
    assert "divided" in causes
    assert "manual" not in causes
    assert "by hand" not in caplog.text
