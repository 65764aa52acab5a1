"""Decisions and answers for ASGI and WSGI alike; must not import a framework."""
