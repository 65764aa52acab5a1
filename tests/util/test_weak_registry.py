"""Objects that a registry knows for as long as they live."""

from __future__ import annotations

from guardrails._util.weak_registry import WeakRegistry


class Thing:
    """Can be referenced weakly."""


def test_objects_come_in_the_order_in_which_they_were_added_and_go_when_they_are_dropped_or_discarded():
    registry, things = WeakRegistry(), [Thing() for _ in range(3)]
    for thing in things:
        registry.add(thing)
    assert registry.living() == things
    registry.discard(things[1])
    registry.discard(things[1])
    assert registry.living() == [things[0], things[2]]
    del things[0], thing
    assert registry.living() == things[1:]
