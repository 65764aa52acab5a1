"""Running, bounding and cancelling DBAPI work; must not import SQLAlchemy or Django."""
