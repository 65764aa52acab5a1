"""Which errors Django translates. Must not import a guard."""

from __future__ import annotations

from types import TracebackType

from django.db import utils

from guardrails.errors import GuardrailsError

__all__ = ["ErrorWrapper"]


class ErrorWrapper(utils.DatabaseErrorWrapper):  # type: ignore[misc]  # Django has no types
    """Leaves the guard's own errors as they are, also those that are a driver's error as well."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None and not issubclass(kind, GuardrailsError):
            super().__exit__(kind, error, traceback)
