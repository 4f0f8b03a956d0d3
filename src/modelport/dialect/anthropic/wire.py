"""Messages events as bytes. Every event names its type twice: for the stream's reader and for the JSON's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

Event = dict[str, Any]

PING = b'event: ping\ndata: {"type": "ping"}\n\n'
# The terminal frame, which a door writes: what backends answer in this dialect leaves it out, as it does `[DONE]`.
MESSAGE_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_encode = msgspec.json.Encoder().encode


def write(events: Iterable[Event]) -> bytes:
    """The events as they go over the wire."""
    return b"".join(b"event: %b\ndata: %b\n\n" % (event["type"].encode(), _encode(event)) for event in events)
