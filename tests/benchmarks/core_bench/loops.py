"""The loops that are timed: one for each way of writing a guarded call, in both flavours.

The bodies are written out, because a helper in between would cost as much as what is measured. They read
the thread's processor time: what other processes do to the machine meanwhile is not the call's cost.
"""

from __future__ import annotations

from itertools import repeat
from time import thread_time_ns


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
