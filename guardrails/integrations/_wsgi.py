"""One WSGI request and its response, as far as it has come. Knows what a server and an application owe each
other (PEP 3333), and of guards only that an edge can say what to answer for an error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from guardrails._deadline import Clock, Scope, close, note_trouble, swap
from guardrails.integrations._edge import Edge
from guardrails.integrations._environ import answer_of, status_line, template_in
from guardrails.integrations._http import Problem
from guardrails.integrations._visit import Visit

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["Exchange"]

_ExcInfo = Any
_Start = tuple[str, list[tuple[str, str]], _ExcInfo]


class Exchange(Visit):
    """One request and its response, as far as it has come; to the server it is the response's body.

    The scope is current only while the application's own code runs: in its call, in each step of its
    body and in ``close``. In between the thread is the server's, which may serve others with it.

    A framework may answer 500 for a guard's error before the error gets here. A 500 in a request that
    had trouble is therefore held back until it is known whether that is all it had to say.

    Attributes:
        place: Stands for the request in the count of requests inside. The count does not hold the
            exchange itself, so that one nobody closes is at least let out when it is collected.
        started: Whether anything has been sent; from then on nothing else can be answered.
    """

    __slots__ = (
        "_announced",
        "_body",
        "_chunks",
        "_edge",
        "_environ",
        "_held",
        "_inner",
        "_server_start",
        "_server_write",
        "place",
        "started",
    )

    def __init__(
        self,
        at: float | None,
        clock: Clock,
        outer: Scope | None,
        rank: int | None,
        edge: Edge,
        environ: WSGIEnvironment,
        start_response: StartResponse,
    ) -> None:
        super().__init__(at, clock, outer, rank)
        self.place = object()
        self.started = False
        self._announced = False  # whether the server knows of a status
        self._held: _Start | None = None
        self._edge = edge
        self._environ = environ
        self._server_start: Callable[..., Callable[[bytes], object]] = start_response
        self._server_write: Callable[[bytes], object] | None = None
        self._inner: Scope | None = self
        self._body: Iterable[bytes] = ()
        self._chunks: Iterator[bytes] | None = None

    def template(self) -> str | None:
        """See RequestScope."""
        return template_in(self._environ) or super().template()

    # --- the application's side ----------------------------------------------------------------

    def serve(self, app: WSGIApplication) -> Iterable[bytes]:
        """Asks the application; what is left to do when it returns is done in steps by the server."""
        server = swap(self)
        over = True
        try:
            self._body = app(self._environ, self._start)
            over = self._held is None and self._needs_nothing_more()
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

    def _needs_nothing_more(self) -> bool:
        # Passed on as they are: a server sets the length of a list by itself, and sends a file of its
        # own kind without reading it. Nothing of the application runs any more in either.
        body, wrapper = self._body, self._environ.get("wsgi.file_wrapper")
        return type(body) in {list, tuple} or (isinstance(wrapper, type) and isinstance(body, wrapper))

    def _start(
        self, status: str, headers: list[tuple[str, str]], exc_info: _ExcInfo = None, /
    ) -> Callable[[bytes], object]:
        first = not self._announced and self._held is None
        if status[:3] == "500" and self.trouble is not None and not self.started and (first or exc_info):
            self._held = status, headers, exc_info
        elif self._held is not None and exc_info:
            self._announce(status, headers, exc_info)
        else:
            self._let_go()
            self._announce(status, headers, exc_info)
        return self._write

    def _write(self, data: bytes) -> None:
        self._let_go()
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
        """Ends the request; called by the server whether it has sent everything or not."""
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
        self._edge.release(self.place)

    def _end(self) -> None:
        close(self)
        self.learn()
        self.trouble = None  # its traceback holds this request's frames, and they hold this
        self._edge.release(self.place)

    # --- as long as nothing is sent ------------------------------------------------------------

    def _step(self) -> bytes | None:
        """The next piece while another answer is still possible; None when there is none."""
        try:
            if self._chunks is None:
                self._chunks = iter(self._body)
            chunk = next(self._chunks, None)
            if self._held is None:
                return chunk
            self._chunks = self._settle(chunk, self._chunks)
        except Exception as error:
            answer = self._answer_for(error)
            if answer is None:
                raise
            self._chunks = iter(answer)
        return next(self._chunks, None)

    def _settle(self, chunk: bytes | None, rest: Iterator[bytes]) -> Iterator[bytes]:
        """Decides about a 500 that was held back: sent in one piece, it is an error handler's."""
        pieces: list[bytes] = []
        whole = True
        while whole and chunk is not None:
            whole = not (chunk and any(pieces))
            pieces.append(chunk)
            chunk = next(rest, None) if whole else None
        problem = self._edge.problem(self.trouble) if whole and self.trouble is not None else None
        if problem is not None:
            return iter(self.answer(problem))
        self._let_go()
        return chain(pieces, rest)

    def _answer_for(self, error: Exception) -> list[bytes] | None:
        problem = None if self.started else self._edge.problem(error)
        if problem is None:
            self._hand_on()
            return None
        return self.answer(problem, sys.exc_info())

    def answer(self, problem: Problem, exc_info: _ExcInfo = None) -> list[bytes]:
        """Says what is wrong, in place of whatever was announced so far."""
        held, self._held = self._held, None
        status, headers, body = answer_of(problem, self._environ)
        # With exc_info the server forgets an earlier status, or raises it when that was sent already.
        again = (exc_info or (held and held[2])) if self._announced else None
        self._announce(status_line(status), headers, again)
        return [] if self._environ.get("REQUEST_METHOD") == "HEAD" else [body]

    def _announce(self, status: str, headers: list[tuple[str, str]], exc_info: _ExcInfo) -> None:
        self._announced = True
        self._held = None
        if exc_info:
            self._server_write = self._server_start(status, headers, exc_info)
        else:
            self._server_write = self._server_start(status, headers)

    def _let_go(self) -> None:
        if self._held is not None:
            self._hand_on()
            self._announce(*self._held)

    def _hand_on(self) -> None:
        # Another middleware further out may answer for the guard this one does not.
        if self.trouble is not None:
            inner = swap(self.outer)
            note_trouble(self.trouble)
            swap(inner)

    def _begin(self) -> None:
        # The budget is for the first byte: a stream may be long.
        self.started = True
        self.lift()
