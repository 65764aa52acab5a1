"""One table."""

from __future__ import annotations

from django.db import models


class Item(models.Model):
    """Something in the shop."""

    name = models.CharField(max_length=40)

    def __str__(self):
        return self.name
