"""A project with PostgreSQL, a replica of it, MariaDB, a router, WSGI, ASGI and Celery."""
