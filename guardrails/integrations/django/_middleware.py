"""The middleware in Django's own style, for WSGI and ASGI alike. Must not import the database backend."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

try:
    from asgiref.sync import iscoroutinefunction, markcoroutinefunction
    from django.conf import settings as django_settings
    from django.db import connections
    from django.http import HttpRequest, HttpResponse
except ImportError as error:
    raise ImportError("Django is missing: pip install django") from error

from guardrails._http.answers import Problem
from guardrails._http.environ import answer_of, budgets_of, rank_in
from guardrails._http.error_causes import follow_frameworks
from guardrails._http.policy import RequestPolicy, WithPolicy
from guardrails._http.routes import requires
from guardrails._http.server_threads import check_threads
from guardrails._http.settings import HTTPSettings
from guardrails._http.tracked_request import TrackedRequest, Views
from guardrails._runtime.scope import close, current, enter
from guardrails._util.checks import Faults
from guardrails._util.names import request_name, with_braces
from guardrails.integrations.django._names import named
from guardrails.integrations.django._streams import keep_route, make_first_part

__all__ = ["GuardrailsMiddleware", "requires"]

_UNHANDLED = 500


class GuardrailsMiddleware(WithPolicy):
    """Answers 503 for a call that a guard refused and 504 for one that it stopped, instead of Django's 500.

    ::

        MIDDLEWARE = ["guardrails.integrations.django.GuardrailsMiddleware", ...]
        GUARDRAILS = {"guards": ["shop.guards.db"], "request_timeout": 5.0}

    ``GUARDRAILS`` holds the settings of `guardrails.integrations.asgi.GuardrailsMiddleware`, except
    ``server_timing`` and ``cancel_on_disconnect``, and the WSGI middleware's ``threads``, which ASGI ignores.
    A guard may also be its dotted name. Put the middleware first. It works under WSGI and ASGI servers. Its
    answers are neither logged to ``django.request`` nor mailed to the administrators. The guards that a view
    needs, marked with `requires` or learnt from its requests, are checked before the view is called.

    Raises:
        ConfigurationError: One or more settings are wrong; all are named at once.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        settings = _settings(getattr(django_settings, "GUARDRAILS", {}))
        self._clock = settings.clock
        self._policy = RequestPolicy(settings)
        self._views = Views(self._policy, self._clock, learns=settings.learn_routes)
        follow_frameworks()
        _attach_guards()
        self.get_response = get_response
        self._asynchronous: bool = iscoroutinefunction(get_response)
        if self._asynchronous:
            markcoroutinefunction(self)
        elif settings.threads is not None:  # under ASGI Django has a thread for each request
            check_threads(settings.threads, self._policy.slots, settings.max_in_flight)
        # Of the server's kind, or Django would run it in a thread.
        self.process_view = self._check_view_async if self._asynchronous else self._check_view

    def __call__(self, request: HttpRequest) -> HttpResponse | Awaitable[HttpResponse]:
        """Serves one request, or returns the coroutine that does, by the kind of the server."""
        if self._asynchronous:
            return self._serve(request)
        with self._tracked(request) as tracked:
            if tracked.response is None:
                tracked.response = self.get_response(request)
        return tracked.response

    async def _serve(self, request: HttpRequest) -> HttpResponse:
        with self._tracked(request) as tracked:
            if tracked.response is None:
                tracked.response = await self.get_response(request)
        return tracked.response

    def _check_view(
        self, request: HttpRequest, view: Callable[..., Any], _args: object, _kwargs: object
    ) -> HttpResponse | None:
        name = request_name(request.method, _template_of(request) or "")
        problem = self._views.check_view(view, name, request.path_info)
        return None if problem is None else _response(problem, request)

    async def _check_view_async(self, *args: Any) -> HttpResponse | None:
        return self._check_view(*args)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Returns the answer for a view's exception; None leaves it to Django."""
        problem = self._policy.problem(exception)
        return None if problem is None else _response(problem, request)

    def _tracked(self, request: HttpRequest) -> _TrackedRequest:
        rank = rank_in(request.META, self._policy.criticality, request.path_info)
        tracked = _TrackedRequest(self._clock, rank, self._policy, request, wsgi=not self._asynchronous)
        if self._policy.timed:
            self._policy.limit(tracked, budgets_of(request.META), self._clock())
        return tracked


class _TrackedRequest(TrackedRequest):
    """One request, as a block around all that serves it.

    Attributes:
        response: The response; set on entry if the request is refused.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        rank: int | None,
        policy: RequestPolicy,
        request: HttpRequest,
        *,
        wsgi: bool,
    ) -> None:
        super().__init__(clock, current(), rank)
        self.response: HttpResponse | None = None
        self._policy = policy
        self._request = request
        self._over = False
        self._wsgi = wsgi

    @property
    def is_open(self) -> bool:
        """See RequestScope. The block ends before a streamed body is sent."""
        return not self._over

    def template(self) -> str | None:
        """See RequestScope."""
        return _template_of(self._request) or super().template()

    def find_name(self) -> str | None:
        """See RequestScope."""
        template = self.template()
        if template is not None:
            self.name = request_name(self._request.method, template)
        return self.name

    def __enter__(self) -> Self:
        problem = self._policy.admit(self, self._request.path_info) if self._policy.selective else None
        if problem is not None:
            self.response = _response(problem, self._request)
        enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        close(self)
        if self.response is None:
            self.learn()
            self.forget_error()
            self._finish()
            return
        if self.request_errors is not None:
            if self.response.status_code == _UNHANDLED and self.request_errors.unhandled is not None:
                self.response = self._replacement_for(self.response, self.request_errors.unhandled)
            self.served = self.response.status_code < _UNHANDLED
        self.learn()
        self.forget_error()
        keep_route(self.response, self.clock, self)
        if self._wsgi:
            self.response = self._with_first_part(self.response)
        self._release_at_close(self.response)

    def _replacement_for(self, response: HttpResponse, error: BaseException) -> HttpResponse:
        # A refusal in another middleware, of which Django has made a 500. A refusal that is not answered for
        # here may be answered by a middleware around Django.
        problem = None if response.streaming else self._policy.problem(error)
        if problem is None:
            return response
        response.close()
        return _response(problem, self._request)

    def _with_first_part(self, response: HttpResponse) -> HttpResponse:
        # A WSGI server sends the headers with the first part: before that a refusal can be answered.
        try:
            error = make_first_part(response)
        except BaseException:  # the worker stops, or a coroutine times out
            self._finish()
            raise
        problem = None if error is None else self._policy.problem(error)
        if problem is None:
            return response
        response.close()
        return _response(problem, self._request)

    def _finish(self) -> None:
        self._over = True
        self._policy.release(self)

    def _release_at_close(self, response: HttpResponse) -> None:
        closing = response.close

        def close_and_release() -> None:
            try:
                closing()
            finally:
                self._finish()

        response.close = close_and_release  # both handlers call it when all is sent or the client has left


def _template_of(request: HttpRequest) -> str | None:
    match = request.resolver_match  # set when Django has found the view
    return None if match is None else with_braces(f"/{match.route}")


def _response(problem: Problem, request: HttpRequest) -> HttpResponse:
    status, headers, body = answer_of(problem, request.META)
    response = HttpResponse(b"" if request.method == "HEAD" else body, status=status, headers=dict(headers))
    # Otherwise Django's log_response makes an ERROR of each answer, which is mailed to the administrators.
    response._has_been_logged = True  # noqa: SLF001 - what log_response reads; there is no public name
    return response


# --- settings --------------------------------------------------------------------------------------

_WHERE = "settings.GUARDRAILS"


def _settings(given: object) -> HTTPSettings:
    faults = Faults(_WHERE)
    if not isinstance(given, Mapping):
        faults.add("GUARDRAILS", given, "a dict of settings")
        return HTTPSettings.checked(faults, {})
    HTTPSettings.refuse_unknown(_WHERE, given, without=("server_timing", "cancel_on_disconnect"))
    required = given.get("requires")
    if isinstance(required, Mapping):
        required = {path: _found(guards) for path, guards in required.items()}
    found = {"guards": _found(given.get("guards", ())), "requires": _found(required)}
    return HTTPSettings.checked(faults, {**given, **found})


def _attach_guards() -> None:
    """Makes Django construct its guarded databases, which attaches their guards and opens no connection.

    One of our backends without a guard is refused then, and not in the first request.

    A call through an unattached guard takes a slot, and so would the first query inside it.
    """
    for alias in connections:
        settings = connections.settings[alias]
        if "guard" in settings.get("OPTIONS", {}) or settings["ENGINE"].startswith("guardrails."):
            _ = connections[alias]


def _found(guards: object) -> object:
    """Replaces dotted names by guards; returns a value that is not a list as it is, for the check."""
    if not isinstance(guards, Iterable) or isinstance(guards, str | Mapping):
        return guards
    return [named(_WHERE, guard) for guard in guards]
