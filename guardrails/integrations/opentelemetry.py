"""The figures of guards for OpenTelemetry, read when a reader collects; and refusals, on their spans.

Knows the API of OpenTelemetry, not its SDK, which is the application's.
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
    """Has the figures of guards collected with the application's other metrics.

    ::

        observe([db, cache])

    The metrics are ``guardrails.*``, with the attribute ``guard``, and ``guardrails.compartment.*``, with
    ``guard`` and ``compartment``. Exported to Prometheus they have the names that
    `guardrails.integrations.prometheus` gives them. A guard attached to a pool also reports its connections
    under the names of OpenTelemetry's semantic conventions (1.44, all in development):
    ``db.client.connection.count`` (those in use), ``.max`` and ``.pending_requests``.

    Call it once for a guard: instruments cannot be taken back.

    Args:
        guards: The guards, each with its compartments, those included that are made later.
        meter: Where the instruments are made; None takes the global provider's.

    Raises:
        ConfigurationError: ``guards`` is no list of guards, or ``meter`` is no meter.
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
    """Notes each refusal on the span it happens in, as the event ``guardrails.rejected``.

    ::

        db = protect(engine, listeners=[SpanListener()])

    Its attributes are ``guardrails.guard``, ``guardrails.reason`` and, where it is known,
    ``guardrails.retry_after`` in seconds.
    """

    events = (CallRejected,)

    def __call__(self, event: Event) -> None:
        """See `guardrails.events`: it runs where the refused call was made."""
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
        for whose, snapshot in reading(which, guards).items():
            labels = dict(zip(which.labels, whose, strict=True))
            for value, amount in figure.read(snapshot).items():
                own = {} if figure.label is None else {figure.label: value}
                yield Observation(amount, labels | own)

    return read


def _observe_pools(meter: Meter, guards: list[Guard]) -> None:
    def of_each(
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
        of_each(lambda seen: seen.in_use, {_STATE: "used"}),
        "{connection}",
        "Connections in use.",
    )
    meter.create_observable_up_down_counter(
        "db.client.connection.max",
        of_each(lambda seen: seen.max_concurrent_calls),
        "{connection}",
        "Connections that may be in use at once.",
    )
    meter.create_observable_up_down_counter(
        "db.client.connection.pending_requests",
        of_each(lambda seen: seen.waiting),
        "{request}",
        "Callers that wait for a connection.",
    )
