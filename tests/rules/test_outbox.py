"""Writes of one turn leave together, in order, and never grow beyond a bound."""

from __future__ import annotations

import asyncio

from modelport.kit.outbox import MOST_BYTES, outbox_of


class Pipe(asyncio.WriteTransport):
    """What a transport does, kept in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []
        self.closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closing


async def test_writes_leave_at_the_end_of_the_turn_in_order() -> None:
    outbox, left, right = outbox_of(asyncio.get_running_loop()), Pipe(), Pipe()
    for number in range(3):
        outbox.write(left, b"%d" % number)
        outbox.write(right, b"%d" % number)
    assert left.sent == right.sent == []
    await asyncio.sleep(0)
    assert left.sent == right.sent == [b"0", b"1", b"2"]


async def test_a_producer_that_never_pauses_meets_the_socket() -> None:
    outbox, pipe = outbox_of(asyncio.get_running_loop()), Pipe()
    outbox.write(pipe, bytes(MOST_BYTES))
    assert pipe.sent == []
    outbox.write(pipe, b"x")
    assert len(pipe.sent) == 2


async def test_nothing_is_written_to_a_closed_transport() -> None:
    outbox, pipe = outbox_of(asyncio.get_running_loop()), Pipe()
    outbox.write(pipe, b"late")
    pipe.closing = True
    outbox.flush()
    assert pipe.sent == []


async def test_flush_lets_one_write_go_first() -> None:
    outbox, pipe = outbox_of(asyncio.get_running_loop()), Pipe()
    outbox.write(pipe, b"first")
    outbox.flush()
    pipe.write(b"second")
    await asyncio.sleep(0)
    assert pipe.sent == [b"first", b"second"]


async def test_each_loop_has_one_outbox() -> None:
    loop = asyncio.get_running_loop()
    assert outbox_of(loop) is outbox_of(loop)
