"""The sandbox: answers, errors and delays to order, to write and test a client against."""

from __future__ import annotations

import openai
import pytest

from tests.guide.conftest import Tour


def say(tour: Tour, text: str) -> str | None:
    answer = tour.sdk.chat.completions.create(model="sandbox", messages=[{"role": "user", "content": text}])
    return answer.choices[0].message.content


def test_the_same_question_gets_the_same_answer(tour: Tour) -> None:
    assert say(tour, "How are you?") == say(tour, "How are you?")


def test_an_answer_of_an_exact_length(tour: Tour) -> None:
    answer = tour.sdk.chat.completions.create(model="sandbox", messages=[{"role": "user", "content": "[[tokens:12]]"}])
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12


def test_an_echo(tour: Tour) -> None:
    assert say(tour, "[[echo]] Hello, world!") == "Hello, world!"


@pytest.mark.parametrize(
    ("directive", "error"),
    [
        ("[[error:400]]", openai.BadRequestError),
        ("[[error:401]]", openai.AuthenticationError),
        ("[[error:403]]", openai.PermissionDeniedError),
        ("[[error:404]]", openai.NotFoundError),
        ("[[error:422]]", openai.UnprocessableEntityError),
        ("[[error:429]]", openai.RateLimitError),
        ("[[error:503]]", openai.InternalServerError),
    ],
)
def test_every_error_that_a_client_must_take(tour: Tour, directive: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        say(tour, directive)


def test_a_stream_that_breaks_off_says_so(tour: Tour) -> None:
    stream = tour.sdk.chat.completions.create(
        model="sandbox", messages=[{"role": "user", "content": "[[tokens:20]] [[cut:5]]"}], stream=True
    )
    pieces: list[str] = []
    with pytest.raises(openai.APIError):
        pieces.extend(chunk.choices[0].delta.content or "" for chunk in stream)
    assert "".join(pieces)


def test_a_tool_call(tour: Tour) -> None:
    answer = tour.sdk.chat.completions.create(
        model="sandbox", messages=[{"role": "user", "content": '[[tool:weather {"city": "Oslo"}]]'}]
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, call.function.arguments) == ("weather", '{"city":"Oslo"}')


def test_directives_in_metadata_where_there_is_no_prompt(tour: Tour) -> None:
    with pytest.raises(openai.RateLimitError):
        tour.sdk.embeddings.create(
            model="sandbox", input="anything", extra_body={"metadata": {"sandbox": "[[error:429]]"}}
        )
