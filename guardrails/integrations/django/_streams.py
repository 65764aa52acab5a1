"""The body of a streaming response: each piece is made in the request's scope. Must not know a guard."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from itertools import chain
from typing import Any

from guardrails._runtime.scope import Clock, RequestScope, close, swap

__all__ = ["begin", "keep_route"]


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
    if not _is_made(response):
        return
    body = _Body(clock, request.find_name(), request.template())
    steps = _async_steps if response.is_async else _steps
    response.streaming_content = steps(body, response.streaming_content)


def begin(response: Any) -> Exception | None:
    """Makes the first piece of a synchronous streaming response, and returns the error of doing so.

    The server has sent nothing by then, so the request can still be answered in another way. If it is not,
    the error is raised again where the server asks for the piece.
    """
    if not _is_made(response) or response.is_async:
        return None
    content = response.streaming_content
    try:
        first = next(content)
    except StopIteration:
        response.streaming_content = ()
    except Exception as error:  # noqa: BLE001 - it is raised again
        response.streaming_content = _failing(error)
        return error
    else:
        response.streaming_content = chain((first,), content)
    return None


def _is_made(response: Any) -> bool:
    # A file is sent by the server; nothing of the application runs any more.
    return bool(response.streaming) and getattr(response, "file_to_stream", None) is None


def _failing(error: Exception) -> Iterator[bytes]:
    raise error
    yield


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
