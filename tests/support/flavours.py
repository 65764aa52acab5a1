"""The same behaviour in a thread and in an asyncio task."""

from __future__ import annotations

from functools import partial


class SyncFlavour:
    """Calls of a thread."""

    is_async = False

    def __call__(self, guard, fn, *args, **kwargs):
        """Calls a scripted function through the guard."""
        return guard.run(fn, *args, **kwargs)

    def start(self, guard, timeout=None):
        """Begins a call that stays under way until it is told to ``finish``."""
        call = guard.call(timeout)
        call.__enter__()
        return partial(_finish, lambda: None, call.__exit__)

    def decorated(self, fn):
        """Makes a scripted function one of this flavour."""
        return fn

    def result(self, value):
        """What a call of a decorated function gives in the end."""
        return value


class AsyncFlavour:
    """Calls of asyncio tasks, all in one loop."""

    is_async = True

    def __init__(self, runner):
        self._runner = runner

    def __call__(self, guard, fn, *args, **kwargs):
        """See SyncFlavour."""
        return self._runner.run(guard.run_async(self.decorated(fn), *args, **kwargs))

    def start(self, guard, timeout=None):
        """See SyncFlavour."""
        call = guard.call(timeout)
        self._runner.run(call.__aenter__())
        return partial(_finish, self._runner.run, call.__aexit__)

    def decorated(self, fn):
        """See SyncFlavour."""

        async def scripted(*args, **kwargs):
            return fn(*args, **kwargs)

        return scripted

    def result(self, value):
        """See SyncFlavour."""
        return self._runner.run(value)


def _finish(wait, leave, error=None):
    ending = leave(None if error is None else type(error), error, None)
    if ending is not None:
        wait(ending)
