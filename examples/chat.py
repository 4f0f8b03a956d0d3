"""Ask a question and print the answer as it comes, with the official OpenAI SDK.

OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=mp_live_… python examples/chat.py
"""

from openai import OpenAI

client = OpenAI()
stream = client.chat.completions.create(
    model="smollm2-135m-instruct",
    messages=[{"role": "user", "content": "Name three colours."}],
    max_tokens=60,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    elif chunk.usage:
        print(f"\n{chunk.usage.prompt_tokens} tokens in, {chunk.usage.completion_tokens} out")
