"""Makes each part of a streaming response in the request's scope. Must not import a guard."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from itertools import chain
from typing import Any

from guardrails._runtime.scope import Clock, RequestScope, close, swap

__all__ = ["keep_route", "make_first_part"]


class _Body(RequestScope):
    """The request scope of a body whose parts are made after the view and the middleware have returned.

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
    """Attributes the guarded calls of a streaming response, in each of its steps, to its request's route."""
    if not _is_generated(response):
        return
    body = _Body(clock, request.find_name(), request.template())
    body.client = request.client
    steps = _async_steps if response.is_async else _steps
    response.streaming_content = steps(body, response.streaming_content)


def make_first_part(response: Any) -> Exception | None:
    """Makes the first part of a synchronous streaming response, and returns the error if that fails.

    The server has sent nothing yet, so the caller can still answer otherwise. If it does not, the error is
    raised again when the server asks for the part.
    """
    if not _is_generated(response) or response.is_async:
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


def _is_generated(response: Any) -> bool:
    # The server sends a file by itself: no code of the application runs.
    return bool(response.streaming) and getattr(response, "file_to_stream", None) is None


def _failing(error: Exception) -> Iterator[bytes]:
    raise error
    yield


def _steps(body: _Body, content: Iterator[bytes]) -> Iterator[bytes]:
    try:
        while True:
            outside = swap(body)
            try:
                part = next(content)
            except StopIteration:
                return
            finally:
                swap(outside)
            yield part
    finally:
        close(body)


async def _async_steps(body: _Body, content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        while True:
            outside = swap(body)
            try:
                part = await anext(content)
            except StopAsyncIteration:
                return
            finally:
                swap(outside)
            yield part
    finally:
        close(body)
