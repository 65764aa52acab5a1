"""The time limit of queries to a server, and the words of its refusal. Must not depend on a driver."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TypeVar

from guardrails._runtime.threads import daemon
from guardrails.diagnosis.findings import Finding

__all__ = ["ANSWER_TIMEOUT", "CONNECT_TIMEOUT", "OUR_ENGINE", "refusal", "within", "words"]

ANSWER_TIMEOUT = 10.0
"""Seconds for connecting and all queries together."""

CONNECT_TIMEOUT = 5
"""Seconds for the driver to connect, for each address of the host."""

OUR_ENGINE = "guardrails_diagnosis"
"""The execution option of the engines that ask servers, which are no part of a service."""

_LONGEST = 200
_ADDRESS = re.compile(
    r"\b\d{1,3}(\.\d{1,3}){3}\b|\b[0-9a-f]{0,4}(:[0-9a-f]{0,4}){2,7}\b|(?<!\w)::1?(?!\w)", re.IGNORECASE
)
_HIDDEN = "..."

T = TypeVar("T")


def within(seconds: float, question: Callable[[], T]) -> T:
    """Runs a query in a thread and waits for it at most ``seconds``, even if the name service hangs.

    A thread that is late is left behind, because the command ends soon.

    Raises:
        TimeoutError: There was no answer in time.
    """
    answers: list[T] = []
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            answers.append(question())
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = daemon("guardrails-diagnose", ask)
    thread.start()
    thread.join(seconds)
    for error in errors:
        raise error
    if not answers:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return answers[0]


def words(message: str, secrets: Iterable[object]) -> str:
    """Shortens a driver's message to one line without addresses and secrets.

    Args:
        message: The driver's message.
        secrets: Passwords, hosts, ports and other texts to hide.
    """
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    # libpq writes the address before the error, once for each address.
    said = [line.rsplit(" failed: ", 1)[-1] for line in lines if " failed: " in line] or lines[:1]
    text = "; ".join(dict.fromkeys(" ".join(line.split()) for line in said))
    for secret in sorted({str(each) for each in secrets if each}, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", _HIDDEN, text)
    text = _ADDRESS.sub(_HIDDEN, text)
    return "".join(char if char.isprintable() else "?" for char in text)[:_LONGEST] or "no reason given"


_UNKNOWN_HOST = ("not known", "translate host", "resolve host", "name resolution", "no address associated")


def refusal(said: str, *, answered: bool = False, crowded: bool = False) -> Finding:
    """Makes a finding of a failed connection.

    Args:
        said: The driver's words.
        answered: True if the server itself refused.
        crowded: True if it refused because all connections are taken.
    """
    if crowded:
        return Finding(
            "connections",
            f"it answers, and has no connection left for this user: {said}",
            (),
            "ask as a superuser, for whom some are kept, who has them; then make the pools smaller "
            "(guardrails size), run fewer processes, or put a pooler in between",
        )
    if answered:
        return Finding(
            "denied",
            f"it answers, and does not let this user in: {said}",
            (),
            "compare the URL's user, password and database with those there are",
        )
    lower = said.lower()
    if any(sign in lower for sign in _UNKNOWN_HOST):
        advice = "is the host's name right, and does this machine's name service know it?"
    elif "refused" in lower or "connect call failed" in lower:
        advice = "nothing listens at this port of that machine: is it running, and is the port right?"
    else:
        advice = "is it running, and can this machine reach it through all firewalls?"
    return Finding("unreachable", f"it does not answer: {said}", (), advice)
