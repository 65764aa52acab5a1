"""A small shop: orders in PostgreSQL, pages in Redis, guards in front of both."""
