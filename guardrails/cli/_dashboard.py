"""The dashboard for Grafana, in its format. Depends on the charts; must not print."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from guardrails.cli._dashboard_panels import ROWS, Panel
from guardrails.cli._metric_names import series

__all__ = ["dashboard"]

_SCHEMA = 41
"""Grafana 12's version of the format. Later versions of Grafana read it."""

_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH, _HEIGHT, _COLUMNS = 8, 8, 3


def dashboard(title: str) -> dict[str, Any]:
    """Returns the dashboard as Grafana imports it."""
    return {
        "uid": "guardrails",
        "title": title,
        "schemaVersion": _SCHEMA,
        "tags": ["guardrails"],
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": list(_variables())},
        "annotations": {"list": []},
        "panels": list(_panels()),
    }


def _variables() -> Iterator[dict[str, Any]]:
    yield {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    state = series("guardrails.breaker_state")
    for name, query in (
        ("job", f"label_values({state}, job)"),
        ("guard", f'label_values({state}{{job=~"$job"}}, guard)'),
    ):
        yield {
            "name": name,
            "label": name.capitalize(),
            "type": "query",
            "datasource": _DATASOURCE,
            "query": {"query": query, "refId": name},
            "refresh": 2,
            "includeAll": True,
            "allValue": ".*",
            "multi": True,
            "current": {"text": "All", "value": "$__all"},
        }


def _panels() -> Iterator[dict[str, Any]]:
    number, top = 0, 0
    for title, panels in ROWS.items():
        number += 1
        place = {"x": 0, "y": top, "w": _WIDTH * _COLUMNS, "h": 1}
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "gridPos": place,
            "panels": [],
        }
        top += 1
        for index, panel in enumerate(panels):
            number += 1
            line, column = divmod(index, _COLUMNS)
            place = {"x": column * _WIDTH, "y": top + line * _HEIGHT, "w": _WIDTH, "h": _HEIGHT}
            yield _panel(panel, number, place)
        top += -(-len(panels) // _COLUMNS) * _HEIGHT


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.meaning,
        "datasource": _DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": list(_targets(panel.queries)),
    }


def _targets(queries: Iterable[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    for index, (expression, legend) in enumerate(queries):
        yield {
            "refId": chr(ord("A") + index),
            "datasource": _DATASOURCE,
            "expr": expression,
            "legendFormat": legend,
        }
