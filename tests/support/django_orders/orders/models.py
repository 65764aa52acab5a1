"""An order lives in PostgreSQL, and when it is old in MariaDB."""

from __future__ import annotations

from django.db import models


class Order(models.Model):
    """An order; it is read from the replica."""

    name = models.CharField(max_length=40)

    def __str__(self):
        return self.name


class OldOrder(models.Model):
    """An order of another year."""

    name = models.CharField(max_length=40)

    def __str__(self):
        return self.name
