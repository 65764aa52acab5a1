"""One function in every form in which Python calls something."""

from __future__ import annotations

import asyncio
import functools
import inspect


def load(number: int, *, fresh: bool = False) -> str:
    """Loads."""
    return f"{number} {fresh}"


async def load_async(number: int, *, fresh: bool = False) -> str:
    """Loads."""
    return f"{number} {fresh}"


class Called:
    """Callable objects of both kinds."""

    def __call__(self, number, *, fresh=False):
        return load(number, fresh=fresh)


class CalledAsync:
    """And asynchronous."""

    async def __call__(self, number, *, fresh=False):
        return load(number, fresh=fresh)


FORMS = {
    "function": load,
    "coroutine function": load_async,
    "partial": functools.partial(load, fresh=False),
    "partial of a coroutine function": functools.partial(load_async, fresh=False),
    "callable": Called(),
    "callable with async call": CalledAsync(),
    "partial of a callable with async call": functools.partial(CalledAsync(), fresh=False),
    "bound method": Called().__call__,
    "bound coroutine method": CalledAsync().__call__,
    "lambda": lambda number, *, fresh=False: load(number, fresh=fresh),
}


def result_of(value):
    async def main():
        return await value

    return asyncio.run(main()) if inspect.isawaitable(value) else value
