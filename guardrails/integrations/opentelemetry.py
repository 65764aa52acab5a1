"""Exports the figures of guards to OpenTelemetry, and records refusals on spans.

Depends on the API of OpenTelemetry; must not import its SDK, which the application chooses. The figures are
read when a reader collects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

try:
    from opentelemetry import metrics, trace
    from opentelemetry.metrics import CallbackOptions, Meter, Observation
except ImportError as error:
    raise ImportError("opentelemetry-api is missing: pip install 'guardrails-db[otel]'") from error

from guardrails._guard.guard import Guard
from guardrails._guard.metrics import FIGURES, SETS, Figure, Set, reading
from guardrails._guard.snapshot import GuardSnapshot
from guardrails._http.settings import checked_guards
from guardrails._util.checks import Faults
from guardrails.errors import ConfigurationError
from guardrails.events import CallRejected, Event

__all__ = ["SpanListener", "observe"]

_POOL = "db.client.connection.pool.name"
_STATE = "db.client.connection.state"

_Read = Callable[[CallbackOptions], Iterable[Observation]]


def observe(guards: Iterable[Guard], *, meter: Meter | None = None) -> None:
    """Registers the figures of guards as observable instruments.

    ::

        observe([db, cache])

    The metrics are ``guardrails.*``, with the attribute ``guard``, and ``guardrails.compartment.*``, with
    ``guard`` and ``compartment``. An export to Prometheus gives them the names that
    `guardrails.integrations.prometheus` uses. A guard attached to a pool also reports its connections
    under the names of OpenTelemetry's semantic conventions (1.44, status "development"):
    ``db.client.connection.count`` (those in use), ``.max`` and ``.pending_requests``.

    Call it once for each guard: an instrument cannot be removed.

    Args:
        guards: The guards. Their compartments are included, also those that are made later.
        meter: Creates the instruments; None takes a meter of the global provider.

    Raises:
        ConfigurationError: ``guards`` is not a list of guards, or ``meter`` is not a meter.
    """
    faults = Faults("observe")
    checked = checked_guards(faults, "guards", guards)
    faults.raise_if_any()
    if meter is not None and not isinstance(meter, Meter):
        raise ConfigurationError(f"observe: meter must be a Meter or None, got a {type(meter).__name__}")
    meter = metrics.get_meter("guardrails") if meter is None else meter
    for which in SETS:
        for figure in FIGURES:
            name = ".".join(filter(None, ("guardrails", which.prefix, figure.name)))
            callbacks = [_reader(checked, which, figure)]
            if figure.kind == "counter":
                meter.create_observable_counter(name, callbacks, figure.unit, figure.meaning)
            else:
                meter.create_observable_gauge(name, callbacks, figure.unit, figure.meaning)
    _observe_pools(meter, [guard for guard in checked if guard.call_settings.attached])


class SpanListener:
    """Adds the event ``guardrails.rejected`` to the current span for each refusal.

    ::

        db = protect(engine, listeners=[SpanListener()])

    The event has the attributes ``guardrails.guard``, ``guardrails.reason`` and, where it is known,
    ``guardrails.retry_after`` in seconds.
    """

    events = (CallRejected,)

    def __call__(self, event: Event) -> None:
        """Handles one event in the context of the refused call; see `guardrails.events`."""
        span = trace.get_current_span()
        if isinstance(event, CallRejected) and span.is_recording():
            attributes: dict[str, str | float] = {
                "guardrails.guard": event.guard,
                "guardrails.reason": event.reason,
            }
            if event.retry_after is not None:
                attributes["guardrails.retry_after"] = event.retry_after
            span.add_event("guardrails.rejected", attributes)


def _reader(guards: Iterable[Guard], which: Set, figure: Figure) -> _Read:
    def read(_: CallbackOptions) -> Iterator[Observation]:
        for names, snapshot in reading(which, guards).items():
            labels = dict(zip(which.labels, names, strict=True))
            for value, amount in figure.read(snapshot).items():
                own = {} if figure.label is None else {figure.label: value}
                yield Observation(amount, labels | own)

    return read


def _observe_pools(meter: Meter, guards: list[Guard]) -> None:
    def callbacks(
        figure: Callable[[GuardSnapshot], int], attributes: dict[str, str] | None = None
    ) -> list[_Read]:
        def read(_: CallbackOptions) -> Iterator[Observation]:
            for guard in guards:
                yield Observation(figure(guard.snapshot()), {_POOL: guard.name} | (attributes or {}))

        return [read]

    if not guards:
        return
    meter.create_observable_up_down_counter(
        "db.client.connection.count",
        callbacks(lambda snapshot: snapshot.in_use, {_STATE: "used"}),
        "{connection}",
        "Connections in use.",
    )
    meter.create_observable_up_down_counter(
        "db.client.connection.max",
        callbacks(lambda snapshot: snapshot.max_concurrent_calls),
        "{connection}",
        "Connections that may be in use at once.",
    )
    meter.create_observable_up_down_counter(
        "db.client.connection.pending_requests",
        callbacks(lambda snapshot: snapshot.waiting),
        "{request}",
        "Callers that wait for a connection.",
    )
