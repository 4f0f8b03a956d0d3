"""`modelport chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from modelport.cli.client import DEFAULT_DATA_DIR, ApiKey, BaseUrl, Client, DataDir
from modelport.cli.output import AsJson, Failure, print_json

_HELP = "Ctrl-C stops an answer, Ctrl-D ends the conversation, /new begins another."


def chat(
    question: Annotated[str | None, typer.Argument(help="Ask this and end; without it, a conversation.")] = None,
    model: Annotated[str | None, typer.Option(help="A chat model's id; the server's first by default.")] = None,
    system: Annotated[str | None, typer.Option(help="What the model is told beforehand.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The longest answer, in tokens.")] = None,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    json_: AsJson = False,
) -> None:
    """Talk to a model; the answer is shown as it comes, then what it cost.

    Example: modelport chat "What is the capital of France?"
    """
    client = Client.from_options(base_url, api_key, data_dir)
    conversation = _Conversation(client, model or _first_chat_model(client), system=system, max_tokens=max_tokens)
    if question is not None or not sys.stdin.isatty():
        answer = conversation.ask(question or sys.stdin.read(), quiet=json_)
        if json_:
            print_json(answer)
        if answer["finish_reason"] is None:
            raise typer.Exit(1)
        return
    if json_:
        raise Failure("--json needs a question", exit_code=2)
    _converse(conversation)


class _Conversation:
    """The messages so far, and one question at a time."""

    def __init__(self, client: Client, model: str, *, system: str | None, max_tokens: int | None) -> None:
        self.model = model
        self._client = client
        self._options = {} if max_tokens is None else {"max_tokens": max_tokens}
        self._opening = [{"role": "system", "content": system}] if system else []
        self._messages = list(self._opening)

    def begin_anew(self) -> None:
        self._messages = list(self._opening)

    def ask(self, question: str, *, quiet: bool = False) -> dict[str, Any]:
        """Stream one answer and print it unless `quiet`; Ctrl-C hangs up and keeps what came."""
        messages = [*self._messages, {"role": "user", "content": question}]
        body = {"model": self.model, "messages": messages, "stream": True, **self._options}
        started_s = time.monotonic()
        stream = self._client.stream("/v1/chat/completions", body | {"stream_options": {"include_usage": True}})
        text, finish_reason, usage = "", None, None
        try:
            for event in stream:
                usage = event.get("usage") or usage
                for choice in event["choices"]:
                    piece = choice["delta"].get("content") or ""
                    finish_reason = choice["finish_reason"] or finish_reason
                    text += piece
                    if not quiet:
                        sys.stdout.write(piece)
                        sys.stdout.flush()
        except KeyboardInterrupt:
            typer.echo(" [stopped]", err=True)
        finally:
            stream.close()
        self._messages = [*messages, {"role": "assistant", "content": text}]
        request_id = stream.headers.get("x-request-id", "")
        cost_usd = None if usage is None else self._cost_usd(request_id, stream.headers)
        if not quiet:
            typer.echo()
            typer.echo(_bill(usage, cost_usd, time.monotonic() - started_s), err=True)
        answer = {"model": self.model, "content": text, "finish_reason": finish_reason}
        return answer | {"usage": usage, "cost_usd": cost_usd, "request_id": request_id}

    def _cost_usd(self, request_id: str, headers: dict[str, str]) -> str | None:
        """What the receipt says; a stream's headers leave before its cost is known."""
        if "x-cost-usd" in headers:
            return headers["x-cost-usd"]
        try:
            receipt = self._client.get(f"/v1/requests/{request_id}").body
        except Failure:
            # The key may lack the scope for it, and the answer is there all the same.
            return None
        cost: str | None = receipt.get("cost_usd")
        return cost


def _converse(conversation: _Conversation) -> None:
    typer.echo(f"{conversation.model}. {_HELP}", err=True)
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            typer.echo(err=True)
            return
        except KeyboardInterrupt:
            typer.echo(f"\n{_HELP}", err=True)
            continue
        if question == "/new":
            conversation.begin_anew()
        elif question:
            try:
                conversation.ask(question)
            except Failure as failure:
                typer.echo(f"modelport: {failure}", err=True)


def _first_chat_model(client: Client) -> str:
    chat_models = [row for row in client.get("/v1/models").body["data"] if row["kind"] == "chat"]
    if not chat_models:
        raise Failure("this key may use no chat model; `modelport models list` shows what it may use")
    model: str = chat_models[0]["id"]
    return model


def _bill(usage: dict[str, Any] | None, cost_usd: str | None, took_s: float) -> str:
    if usage is None:
        return f"[{took_s:.1f} s; what was produced until then is charged]"
    cost = f", ${cost_usd}" if cost_usd is not None else ""
    return f"[{usage['prompt_tokens']} tokens in, {usage['completion_tokens']} out, {took_s:.1f} s{cost}]"
