"""A command of somebody else's on a test's Redis."""

from __future__ import annotations

import asyncio

import hiredis

from tests.services import Service


async def redis_command(service: Service, *words: str) -> None:
    """Run it; it must answer OK."""
    port = int(service.url.rpartition(":")[2].partition("/")[0])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(hiredis.pack_command(words))  # type: ignore[arg-type]
    assert await reader.readline() == b"+OK\r\n"
    writer.close()
    await writer.wait_closed()
