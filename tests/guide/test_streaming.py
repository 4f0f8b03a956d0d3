"""Streaming: the answer as it is written, with its usage at the end."""

from __future__ import annotations

from openai import AsyncOpenAI

from tests.guide.conftest import Tour
from tests.waiting import wait_until


def test_read_an_answer_as_it_comes(tour: Tour) -> None:
    stream = tour.sdk.chat.completions.create(
        model="smollm2-135m-instruct",
        messages=[{"role": "user", "content": "Name three colours."}],
        max_tokens=30,
        stream=True,
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert len(pieces) > 3
    assert "".join(pieces).strip()


def test_ask_for_the_usage(tour: Tour) -> None:
    """One more chunk before the end, without choices, has what was used."""
    stream = tour.sdk.chat.completions.create(
        model="sandbox",
        messages=[{"role": "user", "content": "[[tokens:7]]"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = stream
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 7
    assert all(chunk.usage is None for chunk in chunks)


async def test_stream_with_asyncio(tour: Tour) -> None:
    async with AsyncOpenAI(base_url=f"{tour.server.base_url}/v1", api_key=tour.key) as sdk:
        stream = await sdk.chat.completions.create(
            model="sandbox", messages=[{"role": "user", "content": "[[echo]] good morning"}], stream=True
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
    assert text == "good morning"


async def test_stop_reading_and_pay_for_what_was_written(tour: Tour) -> None:
    """Closing the stream stops the model; the receipt says 499 and what was produced until then."""
    raw = tour.sdk.chat.completions.with_raw_response.create(
        model="sandbox",
        messages=[{"role": "user", "content": "[[tokens:1000]] [[per_token:20ms]]"}],
        stream=True,
    )
    with raw.parse() as stream:
        for number, _ in enumerate(stream):
            if number == 5:
                break
    path = f"/v1/requests/{raw.headers['x-request-id']}"
    await wait_until(lambda: tour.http.get(path).status_code == 200, "the call has ended and is in the books")
    receipt = tour.http.get(path).json()
    assert receipt["status"] == 499
    assert 0 < receipt["output_tokens"] < 1000
