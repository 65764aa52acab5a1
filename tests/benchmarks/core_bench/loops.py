"""The loops that are timed: one for each way of writing a guarded call, in both flavours.

The bodies are written out, because a helper in between would cost as much as what is measured. They read
the thread's processor time: what other processes do to the machine meanwhile is not the call's cost.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from threading import Barrier
from time import perf_counter_ns, thread_time_ns


def call_loop(fn, caught=()):
    """``fn(7)``: the bare call, and the decorated one."""

    def loop(turns):
        began = thread_time_ns()
        for _ in repeat(None, turns):
            try:
                fn(7)
            except caught:
                continue
        return thread_time_ns() - began

    return loop


def run_loop(run, fn, caught=()):
    """``run(fn, 7)``."""

    def loop(turns):
        began = thread_time_ns()
        for _ in repeat(None, turns):
            try:
                run(fn, 7)
            except caught:
                continue
        return thread_time_ns() - began

    return loop


def with_loop(block, fn, caught=()):
    """``with block(): fn(7)``."""

    def loop(turns):
        began = thread_time_ns()
        for _ in repeat(None, turns):
            try:
                with block():
                    fn(7)
            except caught:
                continue
        return thread_time_ns() - began

    return loop


def async_call_loop(runner, fn, caught=()):
    """``await fn(7)``, many times in one task."""

    async def loop(turns):
        began = thread_time_ns()
        for _ in repeat(None, turns):
            try:
                await fn(7)
            except caught:
                continue
        return thread_time_ns() - began

    return lambda turns: runner.run(loop(turns))


def async_run_loop(runner, run, fn, caught=()):
    """``await run(fn, 7)``."""

    async def loop(turns):
        began = thread_time_ns()
        for _ in repeat(None, turns):
            try:
                await run(fn, 7)
            except caught:
                continue
        return thread_time_ns() - began

    return lambda turns: runner.run(loop(turns))


def async_with_loop(runner, block, fn, caught=()):
    """``async with block(): await fn(7)``."""

    async def loop(turns):
        began = thread_time_ns()
        for _ in repeat(None, turns):
            try:
                async with block():
                    await fn(7)
            except caught:
                continue
        return thread_time_ns() - began

    return lambda turns: runner.run(loop(turns))


def crowd_loop(fn, threads):
    """``fn(7)`` from several threads at once, in wall time from the first start to the last end."""

    def loop(turns):
        each = max(1, turns // threads)
        together = Barrier(threads)

        def work():
            together.wait()
            began = perf_counter_ns()
            for _ in repeat(None, each):
                fn(7)
            return began, perf_counter_ns()

        with ThreadPoolExecutor(threads) as pool:
            spans = [span.result() for span in [pool.submit(work) for _ in range(threads)]]
        taken = max(end for _, end in spans) - min(began for began, _ in spans)
        return taken * turns / (each * threads)

    return loop


def paused_loop(fn, clock, pause):
    """``fn(7)``, each call ``pause`` seconds of a hand-moved clock after the one before."""

    def loop(turns):
        began = thread_time_ns()
        for _ in repeat(None, turns):
            clock.advance(pause)
            fn(7)
        return thread_time_ns() - began

    return loop
