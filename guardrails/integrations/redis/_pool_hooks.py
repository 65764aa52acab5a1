"""The methods by which a guarded pool hands out connections and takes them back.

Depends on redis-py's pools and the command runner; must not inspect commands. The asyncio twins are written
out: shared code would cost each checkout two more calls.
"""

from __future__ import annotations

from typing import Any

from guardrails.errors import RejectedError
from guardrails.integrations.redis._checkout import current_checkout
from guardrails.integrations.redis._commands import prefer_block_error
from guardrails.integrations.redis._pool_connections import without_wrapper
from guardrails.integrations.redis._releases import is_release

__all__ = ["async_getter", "async_releaser", "getter", "releaser"]


def getter(admission: Any, base: Any) -> Any:
    work, lease = admission.work, admission.lease
    get_plain = without_wrapper(base.get_connection)

    def get_connection(self: Any, command_name: Any = None, *keys: Any, **options: Any) -> Any:  # noqa: ARG001
        try:
            if lease is not None and not lease.admits:
                lease.admit()
            checkout = work.enter()
        except RejectedError as refusal:
            if not is_release():
                work.checkouts.refused(refusal)
                raise
            return _or_refuse(admission.reserve.open(), refusal)
        token = current_checkout.set(checkout)
        try:
            connection = get_plain(self)
        except BaseException as error:
            checkout.release_slots()
            work.not_handed_out(error)
            raise
        finally:
            current_checkout.reset(token)
        try:
            work.hand_out(connection, checkout)
        except BaseException:  # an interrupt
            self.release(connection)
            raise
        return connection

    return get_connection


def releaser(admission: Any, base: Any) -> Any:
    take_back = admission.work.checkouts.remove
    upkeep, life = admission.upkeep, admission.upkeep.life

    def release(self: Any, connection: Any) -> None:
        if hasattr(connection, "checkout"):
            checkout, connection.checkout = connection.checkout, None
        else:
            checkout = admission.adopt_late(connection)
        if connection.close_on_release:
            connection.close_on_release = False
            connection.disconnect()
            if checkout is not None and checkout.from_reserve:
                admission.reserve.release(connection)
                return
        over = life.acts and upkeep.returned(connection)
        if over:
            connection.disconnect()
        try:
            base.release(self, connection)
            if over:
                upkeep.sink(connection)
        finally:
            if checkout is not None:
                checkout.release_slots()
                take_back(checkout)

    return release


def _or_refuse(connection: Any, refusal: RejectedError) -> Any:
    """Returns a connection of the reserve; raises the refusal if there is none."""
    if connection is None:
        raise prefer_block_error(refusal) or refusal
    return connection


def async_getter(admission: Any, base: Any) -> Any:
    work, lease = admission.work, admission.lease
    get_plain = without_wrapper(base.get_connection)

    async def get_connection(self: Any, command_name: Any = None, *keys: Any, **options: Any) -> Any:  # noqa: ARG001
        try:
            if lease is not None and not lease.admits:
                await lease.admit_async()
            checkout = await work.enter_async()
        except RejectedError as refusal:
            if not is_release():
                work.checkouts.refused(refusal)
                raise
            return _or_refuse(await admission.reserve.open(), refusal)
        token = current_checkout.set(checkout)
        try:
            connection = await get_plain(self)
        except BaseException as error:
            checkout.release_slots()
            work.not_handed_out(error)
            raise
        finally:
            current_checkout.reset(token)
        try:
            work.hand_out(connection, checkout)
        except BaseException:  # an interrupt
            await self.release(connection)
            raise
        return connection

    return get_connection


def async_releaser(admission: Any, base: Any) -> Any:
    take_back = admission.work.checkouts.remove
    upkeep, life = admission.upkeep, admission.upkeep.life

    async def release(self: Any, connection: Any) -> None:
        if hasattr(connection, "checkout"):
            checkout, connection.checkout = connection.checkout, None
        else:
            checkout = admission.adopt_late(connection)
        try:
            if connection.close_on_release:
                connection.close_on_release = False
                await connection.disconnect(nowait=True)
                if checkout is not None and checkout.from_reserve:
                    await admission.reserve.release(connection)
                    return
            over = life.acts and upkeep.returned(connection)
            if over:
                await connection.disconnect(nowait=True)
            await base.release(self, connection)
            if over:
                upkeep.sink(connection)
        finally:
            if checkout is not None:
                checkout.release_slots()
                take_back(checkout)

    return release
