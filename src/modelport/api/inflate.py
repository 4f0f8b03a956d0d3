"""Compressed request bodies, taken apart within bounds.

Source: RFC 9110 section 8.4.1 (content codings), RFC 1950 and RFC 1952.
"""

from __future__ import annotations

import asyncio
import zlib

from modelport.errors import BadRequest, BodyTooLarge

# What zlib recognises by itself: a gzip or a zlib header.
_EITHER = zlib.MAX_WBITS | 32
INFLATED = frozenset({b"gzip", b"x-gzip", b"deflate"})
_IN_THREAD_BYTES = 64_000


async def inflated(packed: bytes, *, most_bytes: int) -> bytes:
    """The body as it was before `gzip` or `deflate`. Raises: BadRequest; BodyTooLarge before more than that exists."""
    if len(packed) < _IN_THREAD_BYTES:
        return _inflate(packed, most_bytes)
    return await asyncio.to_thread(_inflate, packed, most_bytes)


def _inflate(packed: bytes, most_bytes: int) -> bytes:
    unpacker = zlib.decompressobj(_EITHER)
    try:
        body = unpacker.decompress(packed, most_bytes + 1)
    except zlib.error:
        raise BadRequest("The body is not compressed in the way that its content-encoding says.") from None
    if len(body) > most_bytes:
        raise BodyTooLarge(f"The body is larger than {most_bytes:,} bytes when it is unpacked.")
    if not unpacker.eof or unpacker.unused_data:
        raise BadRequest("The compressed body is cut short, or something follows it.")
    return body
