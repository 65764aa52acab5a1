"""The body of a streaming response: each piece is made in the request's scope. Depends on Django alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from guardrails._deadline import Clock, RequestScope, close, swap

__all__ = ["keep_route"]


class _Body(RequestScope):
    """The request of a response whose pieces are made when the view and the middleware are long done.

    It has no deadline: a stream may be long.
    """

    __slots__ = ("_template",)

    def __init__(self, clock: Clock, name: str | None, template: str | None) -> None:
        super().__init__(None, clock, None)
        self.name = name
        self._template = template

    def template(self) -> str | None:
        """See RequestScope."""
        return self._template


def keep_route(response: Any, clock: Clock, request: RequestScope) -> None:
    """Makes what a streaming response asks of guards belong to its request's route, in each of its steps."""
    if not response.streaming or getattr(response, "file_to_stream", None) is not None:
        return  # a file is sent by the server; nothing of the application runs any more
    body = _Body(clock, request.find_name(), request.template())
    steps = _async_steps if response.is_async else _steps
    response.streaming_content = steps(body, response.streaming_content)


def _steps(body: _Body, content: Iterator[bytes]) -> Iterator[bytes]:
    try:
        while True:
            outside = swap(body)
            try:
                piece = next(content)
            except StopIteration:
                return
            finally:
                swap(outside)
            yield piece
    finally:
        close(body)


async def _async_steps(body: _Body, content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        while True:
            outside = swap(body)
            try:
                piece = await anext(content)
            except StopAsyncIteration:
                return
            finally:
                swap(outside)
            yield piece
    finally:
        close(body)
