# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""A TCP relay that makes a server far: what goes through it arrives half a round trip later, in each direction.

usage: relay.py HERE:PORT THERE:PORT ROUND_TRIP        (seconds)

It limits no rate. A new connection's first bytes wait one round trip more, for the handshake that TCP would need. TCP's
slow start is not imitated.
"""

from __future__ import annotations

import asyncio
import socket
import sys

CHUNK = 256 * 1024
# What may be on its way in one direction of one connection: enough for 400 Mbit/s at 80 ms.
ON_THE_WAY = 4 * 1024 * 1024


class Direction:
    """One direction of a connection."""

    def __init__(self, delay: float, first: float) -> None:
        self.delay, self.first = delay, first
        self.queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        self.held = 0
        self.room = asyncio.Event()

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        both = [asyncio.create_task(self._receive(reader)), asyncio.create_task(self._send(writer))]
        try:
            await asyncio.gather(*both)
        except ConnectionError:
            writer.transport.abort()
        finally:
            for task in both:
                task.cancel()

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        clock = asyncio.get_running_loop()
        earliest = clock.time() + self.first
        while True:
            chunk = await reader.read(CHUNK)
            await self.queue.put((max(clock.time(), earliest) + self.delay, chunk))
            if not chunk:
                return
            self.held += len(chunk)
            while self.held > ON_THE_WAY:
                self.room.clear()
                await self.room.wait()

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        clock = asyncio.get_running_loop()
        while True:
            due, chunk = await self.queue.get()
            await asyncio.sleep(due - clock.time())
            if not chunk:
                writer.write_eof() if writer.can_write_eof() else writer.close()
                return
            writer.write(chunk)
            await writer.drain()
            self.held -= len(chunk)
            self.room.set()


async def serve(here: tuple[str, int], there: tuple[str, int], round_trip: float) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*there)
        except OSError:
            writer.transport.abort()
            return
        for each in (writer, far_writer):
            each.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        delay = round_trip / 2
        await asyncio.gather(
            Direction(delay, round_trip).run(reader, far_writer), Direction(delay, 0).run(far_reader, writer), return_exceptions=True,
        )
        far_writer.close()
        writer.close()

    server = await asyncio.start_server(connected, *here, limit=CHUNK, backlog=512)
    await server.serve_forever()


def address(text: str) -> tuple[str, int]:
    host, _colon, port = text.rpartition(":")
    return host, int(port)


if __name__ == "__main__":
    asyncio.run(serve(address(sys.argv[1]), address(sys.argv[2]), float(sys.argv[3])))
