"""Many processes, one connection budget. Redis and Valkey need the extra ``redis``, SQLite needs nothing.

``docs/fleet.md`` has the protocol and what is promised under which fault.
"""
