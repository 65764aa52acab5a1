"""One request over WSGI: its response as far as it has been sent. Depends on PEP 3333 and the request policy.

Must not import a guard or a framework.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from guardrails._http.answers import Problem
from guardrails._http.environ import answer_of, status_line, template_in
from guardrails._http.policy import RequestPolicy
from guardrails._http.tracked_request import TrackedRequest
from guardrails._runtime.scope import Clock, Scope, close, swap
from guardrails._util.names import request_name

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["WSGIRequest"]

_ExcInfo = Any


class WSGIRequest(TrackedRequest):
    """One request and its response, as far as it has been sent. The server sees it as the response's body.

    The scope is current only while the application's code runs: in its call, in each step of its body and
    in ``close``. Between the steps the server may use the thread for other requests.

    A framework may answer 500 for a guard's error before the error gets here. It reports the error first, by
    a signal or with ``exc_info``. So the 500 is not passed on, and our answer replaces it.

    Attributes:
        token: Represents the request in the count of requests. The count must not keep the request itself
            alive: a request that the server never closes ends its count when it is collected.
        started: Whether anything has been sent; then no other answer is possible.
    """

    __slots__ = (
        "_announced",
        "_body",
        "_chunks",
        "_environ",
        "_inner",
        "_policy",
        "_replacement",
        "_server_start",
        "_server_write",
        "started",
        "token",
    )

    def __init__(
        self,
        clock: Clock,
        outer: Scope | None,
        rank: int | None,
        policy: RequestPolicy,
        environ: WSGIEnvironment,
        start_response: StartResponse,
    ) -> None:
        super().__init__(clock, outer, rank)
        self.token = object()
        self.started = False
        self._announced = False  # whether the server has a status
        self._replacement: tuple[Problem, _ExcInfo] | None = None  # the answer in place of a 500
        self._policy = policy
        self._environ = environ
        self._server_start: Callable[..., Callable[[bytes], object]] = start_response
        self._server_write: Callable[[bytes], object] | None = None
        self._inner: Scope | None = self
        self._body: Iterable[bytes] = ()
        self._chunks: Iterator[bytes] | None = None

    def template(self) -> str | None:
        """See RequestScope."""
        found = template_in(self._environ)
        return super().template() if found is None else self._policy.mounts.of(self._environ) + found

    def find_name(self) -> str | None:
        """See RequestScope."""
        # Kept, because a framework drops the request before the last parts of its body are made.
        template = self.template()
        if template is not None:
            self.name = request_name(self._environ.get("REQUEST_METHOD"), template)
        return self.name

    # --- the application's side ----------------------------------------------------------------

    def serve(self, app: WSGIApplication) -> Iterable[bytes]:
        """Calls the application and returns the body, which the server iterates later."""
        server = swap(self)
        over = True
        try:
            self._body = app(self._environ, self._start)
            if self._replacement is not None:
                self._chunks = iter(self.answer(*self._replacement))
            over = self._chunks is None and self._is_complete()
        except Exception as error:
            answer = self._answer_for(error)
            if answer is None:
                raise
            return answer
        finally:
            self._inner = swap(server)
            if over:
                self._end()
        return self._body if over else self

    def _is_complete(self) -> bool:
        # A list and a server's own file are passed on unchanged: the server sets the length of the one and
        # sends the other without reading it. No code of the application runs in either.
        body, wrapper = self._body, self._environ.get("wsgi.file_wrapper")
        return type(body) in {list, tuple} or (isinstance(wrapper, type) and isinstance(body, wrapper))

    def _start(
        self, status: str, headers: list[tuple[str, str]], exc_info: _ExcInfo = None, /
    ) -> Callable[[bytes], object]:
        if self.name is None:
            self.find_name()  # Flask drops the route after this
        problem = None
        if self.request_errors is not None and not self.started and (exc_info or not self._announced):
            if status[:3] == "500":
                error = exc_info[1] if exc_info else self.request_errors.unhandled
                problem = None if error is None else self._policy.problem(error)
            self.served = status[:1] < "5"
        if problem is None:
            self._replacement = None
            self._announce(status, headers, exc_info)
        else:
            self._replacement = problem, exc_info
        return self._write

    def _write(self, data: bytes) -> None:
        if self._replacement is not None:
            return
        self._begin()
        if self._server_write is not None:
            self._server_write(data)

    # --- the server's side ---------------------------------------------------------------------

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        server = swap(self._inner)
        try:
            if self.started and self._chunks is not None:
                return next(self._chunks)
            chunk = self._step()
        finally:
            self._inner = swap(server)
        if chunk is None:
            raise StopIteration
        if chunk:
            self._begin()
        return chunk

    def close(self) -> None:
        """Ends the request. The server calls it whether it has sent everything or not."""
        if self.closed:
            return
        server = swap(self._inner)
        try:
            ending = getattr(self._body, "close", None)
            if ending is not None:
                ending()
        finally:
            swap(server)
            self._end()

    def __del__(self) -> None:
        self._policy.release(self.token)

    def _end(self) -> None:
        close(self)
        self.learn()
        self.forget_error()
        # The server may keep the body, which must then not keep the server's own objects.
        self._server_start, self._server_write = _after_the_end, None
        self._policy.release(self.token)

    # --- before the first byte -----------------------------------------------------------------

    def _step(self) -> bytes | None:
        """Returns the next part while another answer is still possible; None at the end."""
        try:
            if self._chunks is None:
                self._chunks = iter(self._body)
            chunk = next(self._chunks, None)
            if self._replacement is None:
                return chunk
            self._chunks = iter(self.answer(*self._replacement))
        except Exception as error:
            answer = self._answer_for(error)
            if answer is None:
                raise
            self._chunks = iter(answer)
        return next(self._chunks, None)

    def _answer_for(self, error: Exception) -> list[bytes] | None:
        self.served = False
        problem = None if self.started else self._policy.problem(error)
        return None if problem is None else self.answer(problem, sys.exc_info())

    def answer(self, problem: Problem, exc_info: _ExcInfo = None) -> list[bytes]:
        """Answers with a problem, in place of a status that was announced before."""
        self._replacement = None
        status, headers, body = answer_of(problem, self._environ)
        # With exc_info the server replaces an earlier status, or raises the exception if it was sent.
        self._announce(status_line(status), headers, exc_info if self._announced else None)
        return [] if self._environ.get("REQUEST_METHOD") == "HEAD" else [body]

    def _announce(self, status: str, headers: list[tuple[str, str]], exc_info: _ExcInfo) -> None:
        self._announced = True
        if exc_info:
            self._server_write = self._server_start(status, headers, exc_info)
        else:
            self._server_write = self._server_start(status, headers)

    def _begin(self) -> None:
        # The deadline is for the first byte: a stream may be long.
        self.started = True
        self.clear_deadline()


def _after_the_end(*_: object) -> Callable[[bytes], object]:
    raise AssertionError("start_response was called after the request was over")
