"""The names of metrics in Prometheus, taken from the table of metrics. Depends on that table alone."""

from __future__ import annotations

from guardrails._guard.metric_table import METRICS, POOL_NAME

__all__ = ["POOL_LABEL", "of_guard", "quantile", "rate", "selected", "series"]

_BY_NAME = {metric.name: metric for metric in METRICS}

POOL_LABEL = POOL_NAME.replace(".", "_")
"""The label of a pool's metrics: the name of its guard."""


def series(name: str) -> str:
    """Returns the name in Prometheus of a metric that is no histogram.

    Raises:
        KeyError: There is no such metric.
    """
    metric = _BY_NAME[name]
    return metric.prometheus_name + ("_total" if metric.kind == "counter" else "")


def selected(name: str, *matchers: str) -> str:
    """Returns a selector of a metric's series."""
    return f"{series(name)}{{{', '.join(matchers)}}}" if matchers else series(name)


def rate(name: str, *matchers: str, window: str) -> str:
    """Returns the increase per second of a counter."""
    return f"rate({selected(name, *matchers)}[{window}])"


def quantile(share: float, name: str, *matchers: str, by: str, window: str) -> str:
    """Returns a quantile of a histogram, by labels."""
    buckets = f"{_BY_NAME[name].prometheus_name}_bucket{{{', '.join(matchers)}}}".removesuffix("{}")
    return f"histogram_quantile({share:g}, sum by ({by}, le) (rate({buckets}[{window}])))"


def of_guard(expression: str) -> str:
    """Gives the series of a pool the label ``guard``, so that they can be matched with those of its guard."""
    return f'label_replace({expression}, "guard", "$1", "{POOL_LABEL}", "(.*)")'
