"""Questions to a server: their time limit, and the words of a refusal. Depends on no driver."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

from guardrails.diagnosis.findings import Finding

__all__ = ["CONNECT_TIMEOUT", "PATIENCE", "refusal", "within", "words"]

PATIENCE = 10.0
"""Seconds that connecting and all questions may take together."""

CONNECT_TIMEOUT = 5
"""Seconds for the driver to connect; several addresses of one host have that much each."""

_LONGEST = 200
_ADDRESS = re.compile(
    r"\b\d{1,3}(\.\d{1,3}){3}\b|\b[0-9a-f]{0,4}(:[0-9a-f]{0,4}){2,7}\b|(?<!\w)::1?(?!\w)", re.IGNORECASE
)
_HIDDEN = "..."

T = TypeVar("T")


def within(seconds: float, question: Callable[[], T]) -> T:
    """Asks in a thread, and gives up after these seconds, whatever the driver or the name service waits for.

    The thread is left behind: a command that has given up is about to end.

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

    thread = threading.Thread(target=ask, daemon=True, name="guardrails-diagnose")
    thread.start()
    thread.join(seconds)
    for error in errors:
        raise error
    if not answers:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return answers[0]


def words(message: str, secrets: Iterable[object]) -> str:
    """The driver's own words for an error, in one line, without addresses and without what a URL hides.

    Args:
        message: The driver's message.
        secrets: Passwords, hosts, ports and whatever else must not be shown.
    """
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    # libpq says where it tried before it says what came of it, once for each address.
    said = [line.rsplit(" failed: ", 1)[-1] for line in lines if " failed: " in line] or lines[:1]
    text = "; ".join(dict.fromkeys(" ".join(line.split()) for line in said))
    for secret in sorted({str(each) for each in secrets if each}, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", _HIDDEN, text)
    text = _ADDRESS.sub(_HIDDEN, text)
    return "".join(char if char.isprintable() else "?" for char in text)[:_LONGEST] or "no reason given"


_UNKNOWN_HOST = ("not known", "translate host", "resolve host", "name resolution", "no address associated")


def refusal(said: str, *, answered: bool = False, crowded: bool = False) -> Finding:
    """Why nothing could be asked.

    Args:
        said: The driver's words.
        answered: The words are the server's, which let this client in as far as that.
        crowded: They say that all connections are taken.
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
    elif "refused" in lower:
        advice = "nothing listens at this port of that machine: is it running, and is the port right?"
    else:
        advice = "is it running, and can this machine reach it through all firewalls?"
    return Finding("unreachable", f"it does not answer: {said}", (), advice)
