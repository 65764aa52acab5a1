"""A Flask service whose database may lock up.

DATABASE_URL=postgresql+psycopg://localhost/shop gunicorn --threads 40 examples.flask_app:app
"""

from __future__ import annotations

import os

from flask import Flask
from sqlalchemy import create_engine, text
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from guardrails import guarded, protect
from guardrails.integrations.flask import Guardrails
from guardrails.integrations.wsgi import status_app

THREADS = 40

engine = create_engine(os.environ.get("DATABASE_URL", "postgresql+psycopg://localhost/shop"))
db = protect(engine, timeout=2.0)
reports = db.compartment("reports")
guardrails = Guardrails(guards=[db], request_timeout=5.0, threads=THREADS)

app = Flask(__name__)
guardrails.init_app(app)
app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/internal": status_app([db])})  # type: ignore[method-assign]


@app.get("/orders")
def orders() -> dict[str, int]:
    """Goes on while the reports' table is locked."""
    with engine.connect() as connection:
        return {"orders": connection.execute(text("select count(*) from orders")).scalar_one()}


@app.get("/reports/<int:month>")
@guarded(reports, timeout=1.0)
def monthly_report(month: int) -> dict[str, int]:
    """At most 70 % of the pool, one second for all its statements, a circuit of its own."""
    with engine.connect() as connection:
        asked = text("select coalesce(sum(amount), 0) from reports where month = :month")
        return {"report": connection.execute(asked, {"month": month}).scalar_one()}


@app.get("/ping")
def ping() -> str:
    """Needs no database and never waits for one."""
    return "pong"
