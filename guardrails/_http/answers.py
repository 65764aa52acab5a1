"""Words the answers to refused and late requests. Depends on the errors; must not import a guard.

Every text is fixed, except the names of the guard and its compartment, which stand only inside JSON strings.
So no SQL, no host and no exception text reaches a client, and no name reaches a header.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple, Self

from guardrails.errors import CallTimeoutError, CommitUnknownError, Reason, RejectedError

__all__ = ["DEADLINE_HEADERS", "OUTGOING_HEADERS", "Answer", "Problem", "as_json", "budget", "retry_seconds"]

# --- Retry-After -----------------------------------------------------------------------------------

DEFAULT_RETRY = 1.0
LONGEST_RETRY = 120
"""Seconds. The first is for a full bulkhead, where a slot may come free at any time. The second is the
longest ``Retry-After``."""


def retry_seconds(reason: Reason, retry_after: float | None, random: Callable[[], float]) -> int | None:
    """Returns the whole seconds for ``Retry-After``, with jitter so that clients do not return all at once.

    Args:
        reason: The reason of the refusal.
        retry_after: Seconds until a call may be admitted; None if unknown.
        random: Returns a float in [0, 1).

    Returns:
        From ``retry_after`` to half as much again and one more, in [1, 120]; None for a circuit that is
        forced open, because no wait closes it.
    """
    if retry_after is None:
        if reason == "circuit_open":
            return None
        retry_after = DEFAULT_RETRY
    if not retry_after < LONGEST_RETRY:  # NaN and infinity too
        return LONGEST_RETRY
    least = max(1, math.ceil(retry_after))
    return min(LONGEST_RETRY, least + int(random() * (1 + least / 2)))


# --- the answer ------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """A whole response. For HEAD, send the headers without the body."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class _Wording(NamedTuple):
    status: int
    title: str
    detail: str


_WORDINGS: dict[str, _Wording] = {
    "circuit_open": _Wording(
        503,
        "Temporarily unavailable",
        "A part of this service is failing and is not called until it has recovered.",
    ),
    "bulkhead_full": _Wording(503, "Too busy", "This service has reached its limit of concurrent requests."),
    "queue_timeout": _Wording(
        503, "Too busy", "This service has reached its limit of concurrent requests; none ended in time."
    ),
    "deadline_spent": _Wording(
        503, "Out of time", "The time given to this request was over before the work could start."
    ),
    "shed": _Wording(
        503, "Too busy", "This service is under pressure and serves more important requests first."
    ),
    "timeout": _Wording(
        504,
        "Took too long",
        "A part of this service did not answer in time. Whether the work was done is not known.",
    ),
    "commit_unknown": _Wording(
        504,
        "Outcome unknown",
        "Saving was not confirmed in time. Check whether it was done before you send this again.",
    ),
    "client_gone": _Wording(499, "Client gone", "The client closed the connection before the answer."),
}

_TYPE = "urn:problem-type:guardrails:"
_LONGEST_NAME = 100
_ADDRESS = re.compile(r"^[^/]*:[0-9]+$")
"""The compartment of a server, as those of a Redis Cluster are named; no client is told an address."""
_NO_STORE = (b"cache-control", b"no-store")


class Problem(NamedTuple):
    """The content of an answer, before its format is chosen.

    Attributes:
        code: A `Reason`, ``timeout``, ``commit_unknown``, or ``client_gone``: no client sees that answer, but
            logs and metrics around the middleware do, and 499 is no fault of the service to them.
        guard: The guard's name; None if the server as a whole is full.
        retry_after: Seconds for ``Retry-After``, or None to leave it out.
        compartment: The name of the guard's compartment; None for the guard itself.
    """

    code: str
    guard: str | None
    retry_after: int | None
    compartment: str | None = None

    @classmethod
    def of(cls, error: RejectedError | CallTimeoutError, random: Callable[[], float]) -> Self:
        """Returns the problem for a guard's error."""
        if isinstance(error, RejectedError):
            wait = retry_seconds(error.reason, error.retry_after, random)
            return cls(error.reason, error.guard, wait, error.compartment)
        code = "commit_unknown" if isinstance(error, CommitUnknownError) else "timeout"
        return cls(code, error.guard, None, error.compartment)

    @property
    def status(self) -> int:
        """503 for a call that did not start, 504 for one that did not end in time, 499 without a client."""
        return _WORDINGS[self.code].status

    def answer(self, accept: bytes = b"") -> Answer:
        """Words it as RFC 9457 problem details, or as a page for a client that prefers HTML.

        Args:
            accept: The request's ``Accept``; several joined with commas.
        """
        html = prefers_html(accept[:_LONGEST_ACCEPT]) if accept else False
        status, headers, body = _worded(self.code, self.guard, self.compartment, self.retry_after, html)
        return Answer(status, list(headers), body)


# A refusal must cost less than the call it replaces, so each body is made once. Codes, waits and compartments
# are few; the bound is for an application that makes up guard names.
@lru_cache(maxsize=1024)
def _worded(
    code: str,
    guard: str | None,
    compartment: str | None,
    retry_after: int | None,
    html: bool,  # noqa: FBT001 - by position the cache is twice as fast
) -> tuple[int, tuple[tuple[bytes, bytes], ...], bytes]:
    if html:
        kind, body = b"text/html; charset=utf-8", _page(code, retry_after)
    else:
        kind, body = b"application/problem+json", _problem_details(code, guard, compartment, retry_after)
    wait = () if retry_after is None else ((b"retry-after", b"%d" % retry_after),)
    headers = (b"content-type", kind), (b"content-length", b"%d" % len(body)), _NO_STORE, *wait
    return _WORDINGS[code].status, headers, body


def _problem_details(code: str, guard: str | None, compartment: str | None, retry_after: int | None) -> bytes:
    status, title, detail = _WORDINGS[code]
    fields: dict[str, object] = {
        "type": _TYPE + code,
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
    }
    if guard is not None:
        fields["guard"] = guard[:_LONGEST_NAME]
    if compartment is not None and not _ADDRESS.search(compartment):
        fields["compartment"] = compartment[:_LONGEST_NAME]
    if retry_after is not None:
        fields["retry_after"] = retry_after
    return as_json(fields)


def as_json(fields: object, *, indent: int | None = None, between: str = ", ") -> bytes:
    """Returns JSON in which a name cannot be taken for HTML.

    Args:
        fields: The fields to write, or any other value.
        indent: Spaces for each level, for readers. It takes ten times as long.
        between: The separator of two fields.
    """
    text = json.dumps(fields, indent=indent, separators=None if indent else (between, ": "))
    # In JSON "<" occurs only inside strings. Escaped, a client that guesses the type sees no tag.
    return text.replace("<", "\\u003c").encode("ascii")


_STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:1.125rem/1.5 system-ui,sans-serif;max-width:36rem;margin:20vh auto 0;padding:0 1.5rem}"
)
"""For small and dark screens. Where a site's policy forbids the style, the page is plain."""


def _page(code: str, retry_after: int | None) -> bytes:
    _, title, detail = _WORDINGS[code]
    unit = "second" if retry_after == 1 else "seconds"
    again = "" if retry_after is None else f"<p>Please try again in {retry_after} {unit}.</p>\n"
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n<h1>{title}</h1>\n<p>{detail}</p>\n{again}</html>\n"
    ).encode("ascii")


# --- Accept ----------------------------------------------------------------------------------------

_HTML = {"text/html", "application/xhtml+xml"}
_JSON = {"application/problem+json", "application/json", "application/*"}
_QUALITY = re.compile(r"(0(\.[0-9]{0,3})?|1(\.0{0,3})?)\Z", re.ASCII)
_LONGEST_ACCEPT = 1024


@lru_cache(maxsize=256)  # browsers and clients send few different values
def prefers_html(accept: bytes) -> bool:
    """True if ``Accept`` names HTML with a higher quality than JSON. A wildcard alone does not count."""
    html = other = 0.0
    for item in accept.decode("latin-1").lower().split(","):
        kind, *parameters = (part.strip() for part in item.split(";"))
        if kind in _HTML:
            html = max(html, _quality(parameters))
        elif kind in _JSON:
            other = max(other, _quality(parameters))
    return html > other


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name == "q":
            return float(value) if _QUALITY.match(value) else 0.0
    return 1.0


# --- deadline headers ------------------------------------------------------------------------------

# Only what the specifications of gRPC and Connect allow: a positive number of a few ASCII digits. `float`,
# `int` and `\d` would also read NaN, 1e400, 1_000 and the digits of every script.
_MILLISECONDS = re.compile(rb"([0-9]{1,10})\Z")
_GRPC = re.compile(rb"([0-9]{1,8})([HMSmun])\Z")
_GRPC_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_LONGEST_BUDGET = 86_400.0


def _milliseconds(value: bytes) -> float | None:
    match = _MILLISECONDS.match(value)
    return int(match[1]) / 1000 if match else None


def _grpc(value: bytes) -> float | None:
    match = _GRPC.match(value)
    return int(match[1]) * _GRPC_UNITS[match[2]] if match else None


DEADLINE_HEADERS: dict[str, Callable[[bytes], float | None]] = {
    "connect-timeout-ms": _milliseconds,
    "grpc-timeout": _grpc,
    "x-envoy-expected-rq-timeout-ms": _milliseconds,
    "x-request-timeout-ms": _milliseconds,
}
"""The request headers that give the client's timeout, in lower case, with the reader of each."""


def _write_milliseconds(seconds: float) -> str:
    # Rounded down, because a budget may only shrink on its way, but not to 0, which would be ignored. The
    # longest, a day, fits into the eight digits that gRPC allows.
    return str(max(1, int(min(seconds, _LONGEST_BUDGET) * 1000)))


def _write_grpc(seconds: float) -> str:
    return _write_milliseconds(seconds) + "m"


OUTGOING_HEADERS: dict[str, Callable[[float], str]] = {
    name: _write_grpc if read is _grpc else _write_milliseconds for name, read in DEADLINE_HEADERS.items()
}
"""The same headers, with the writer of each."""


def budget(
    headers: Iterable[tuple[bytes, bytes]], wanted: dict[bytes, Callable[[bytes], float | None]]
) -> float | None:
    """Returns the smallest budget that the wanted headers give, in seconds; None if none of them does.

    A value that breaks the grammar, is 0 or is longer than a day is ignored, and so is a repeated header.
    """
    found = [header for header in headers if header[0] in wanted]
    if not found:
        return None
    once: dict[bytes, bytes] = {}
    for name, value in found:
        once[name] = b"" if name in once else value
    read = [wanted[name](value) for name, value in once.items()]
    return min((seconds for seconds in read if seconds and seconds <= _LONGEST_BUDGET), default=None)
