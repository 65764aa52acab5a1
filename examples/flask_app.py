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

engine = create_engine(os.environ.get("DATABASE_URL", "sqlite:///example.db"))
db = protect(engine)
reports = db.compartment("reports")
guardrails = Guardrails(guards=[db], request_timeout=5.0, threads=THREADS)

app = Flask(__name__)
guardrails.init_app(app)
app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/internal": status_app([db])})  # type: ignore[method-assign]


@app.get("/items")
def items() -> dict[str, int]:
    """Goes on while the reports' table is locked."""
    with engine.connect() as connection:
        return {"items": connection.execute(text("select 1")).scalar_one()}


@app.get("/reports")
@guarded(reports, timeout=2.0)
def monthly_report() -> dict[str, int]:
    """At most 70 % of the pool, two seconds for all its statements, a circuit of its own."""
    with engine.connect() as connection:
        return {"report": connection.execute(text("select 2")).scalar_one()}
