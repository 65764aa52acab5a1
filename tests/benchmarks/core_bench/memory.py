"""What a guard weighs, and whether refusing calls makes it heavier."""

from __future__ import annotations

import contextlib
import gc
import sys
import tracemalloc

from core_bench.calls import answers, fail_until_refused, fails
from core_bench.contender import Contender
from core_bench.loops import call_loop

_WARM = 1000
"""Rejections that are not counted: caches fill."""

_PARTS = 10
"""After each, a look at the memory."""


def weights(contenders: list[Contender], instances: int, calls: int) -> dict[str, dict[str, float]]:
    """Bytes: of an instance, of one function decorated with it, and what so many calls add."""
    with _quick_collections():
        return {contender.name: _weigh(contender, instances, calls) for contender in contenders}


def rejections(contenders: list[Contender], count: int) -> dict[str, dict[str, float]]:
    """Memory blocks still taken after so many refused calls (fewer for one that leaks), and not before."""
    with _quick_collections():
        return {
            contender.name: _kept_by_rejections(contender, count)
            for contender in contenders
            if contender.refusal is not None
        }


def _kept_by_rejections(contender, count) -> dict[str, float]:
    decorate = contender.ways(contender.make("rejected"))["sync", "decorator"]
    loop = call_loop(decorate(fails), contender.refusal_class())
    fail_until_refused(loop)
    loop(_WARM)
    before, made, kept = _blocks(), 0, 0
    while made < count and kept <= made / 2:  # a peer that leaks would fill the machine with a million
        loop(count // _PARTS)
        made += count // _PARTS
        kept = _blocks() - before
    return {"refused": float(made), "blocks kept": float(kept)}


def _weigh(contender, instances, calls):
    def decorated(instance):
        return contender.ways(instance)["sync", "decorator"](answers)

    decorated(contender.make("closed"))(7)  # what the first one loads is nobody's weight
    made, functions = [None] * instances, [None] * instances
    tracemalloc.start()
    try:
        start = _bytes()
        made[:] = [contender.make("closed") for _ in made]
        with_instances = _bytes()
        functions[:] = [decorated(instance) for instance in made]
        with_functions = _bytes()
        for fn in functions:
            call_loop(fn)(calls)
        with_calls = _bytes()
    finally:
        tracemalloc.stop()
    return {
        "instance": (with_instances - start) / instances,
        "decorated function": (with_functions - with_instances) / instances,
        f"after {calls:,} calls": (with_calls - with_functions) / instances,
    }


@contextlib.contextmanager
def _quick_collections():
    """Collections look only at what is made inside."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _bytes() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def _blocks() -> int:
    gc.collect()
    return sys.getallocatedblocks()
