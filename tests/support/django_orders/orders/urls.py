"""The views.

| path | |
|---|---|
| ``/write`` | a row for the primary, in a transaction |
| ``/read`` | a count on the replica, as the router says |
| ``/primary`` | a count on the primary, by ``using()`` |
| ``/old`` | a count in the archive |
| ``/archive`` | moves the newest order to the archive: all three databases in one request |
| ``/async`` | a count on the replica and one in the archive, in an asynchronous view |
| ``/figures`` | the figures of each alias |
"""

from __future__ import annotations

from asgiref.sync import sync_to_async
from django.db import transaction
from django.http import HttpResponse, JsonResponse
from django.urls import path

from guardrails import pool_status
from orders import guards
from orders.models import OldOrder, Order

GUARDS = {"default": guards.primary, "replica": guards.replica, "archive": guards.archive}


def figures_of(alias):
    status = pool_status(alias)  # first: where there is no middleware it attaches the guard
    snapshot = GUARDS[alias].snapshot()
    return {
        "in_use": status.in_use,
        "slots": snapshot.in_use,
        "idle": status.idle,
        "opened": snapshot.pool.opened,
        "open": snapshot.pool.open,
        "failed": snapshot.failed,
        "state": snapshot.state,
        "rejected": sum(snapshot.rejected.values()),
    }


def figures(_request):
    return JsonResponse({alias: figures_of(alias) for alias in GUARDS})


def write(_request):
    with transaction.atomic():
        order = Order.objects.create(name="new")
    return HttpResponse(order.name)


def read(_request):
    return HttpResponse(str(Order.objects.count()))


def primary(_request):
    return HttpResponse(str(Order.objects.using("default").count()))


def old(_request):
    return HttpResponse(str(OldOrder.objects.count()))


def archive(_request):
    Order.objects.count()
    with transaction.atomic(), transaction.atomic(using="archive"):
        order = Order.objects.using("default").last()
        OldOrder.objects.create(name=order.name)
        order.delete(using="default")
    return HttpResponse("moved")


async def both(_request):
    count = await Order.objects.acount()
    archived = await sync_to_async(OldOrder.objects.count)()
    return JsonResponse([count, archived], safe=False)


urlpatterns = [
    path("write", write),
    path("read", read),
    path("primary", primary),
    path("old", old),
    path("archive", archive),
    path("async", both),
    path("figures", figures),
]
