"""The users of the service, for locust.

locust --headless -u 50 -r 10 -t 60s --host http://127.0.0.1:8000

A refusal is an answer. It is counted under its status and not as a failure, so that the failures are what the
guard did not prevent: other errors, and answers that took longer than a user waits.
"""

from __future__ import annotations

import random

from locust import HttpUser, between, task


class Customer(HttpUser):  # type: ignore[misc]  # locust is not installed where this is checked
    """Looks at the orders, and sometimes at a report, whose table a migration may have locked."""

    wait_time = between(0.5, 1.5)

    @task(5)  # type: ignore[untyped-decorator]
    def orders(self) -> None:
        """The page that most users want."""
        self.ask("/orders", "/orders")

    @task(1)  # type: ignore[untyped-decorator]
    def report(self) -> None:
        """The page that a migration may lock."""
        self.ask(f"/reports/{random.randint(1, 12)}", "/reports/{month}")

    def ask(self, path: str, name: str) -> None:
        """One request, under the name of its route."""
        with self.client.get(path, name=name, timeout=6, catch_response=True) as answer:
            if answer.status_code in {503, 504}:
                answer.request_meta["name"] = f"{name} {answer.status_code}"
                answer.success()
