"""A service whose table is locked for four seconds; logging is as Python has it. Prints how long it ran."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time

from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from guardrails import GuardrailsError, protect

engine = create_engine(os.environ["SHOP_DATABASE"], pool_size=5, max_overflow=5)
db = protect(engine, timeout=3)
guard = db.compartment("reports") if "compartment" in sys.argv else db


def load():
    """Asks for an order."""
    with contextlib.suppress(GuardrailsError, SQLAlchemyError), guard.call(), engine.connect() as connection:
        connection.execute(text("select * from orders where id = 1"))


def main():
    """Locks the table and asks for orders all the time."""
    began = time.monotonic()
    other = create_engine(os.environ["SHOP_DATABASE"])
    with other.begin() as connection:
        connection.execute(text("create table if not exists orders (id int)"))
    lock = other.connect()
    lock.execute(text("lock table orders"))
    threads = []
    while time.monotonic() < began + 4:
        threads.append(threading.Thread(target=load))
        threads[-1].start()
        time.sleep(0.02)
    lock.close()
    for thread in threads:
        thread.join()
    time.sleep(2)
    print(time.monotonic() - began)
    engine.dispose()
    other.dispose()


main()
