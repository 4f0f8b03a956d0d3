"""The Anthropic dialect: requests and answers of the Messages API, translated to and from OpenAI's chat dialect.

    a door's call      `shapes` what is read of a body  →  `to_chat`    the same as a chat request
    its answer         `to_events` chat chunks as Messages events  →  `folding` events as one message
    an upstream's call `to_messages` a chat request as a Messages request
    its answer         `to_chunks` Messages events as chat chunks
    both               `vocabulary` the words that have a counterpart: stop reasons, usage; `wire` events as bytes

Source: Claude API reference (Messages, streaming, errors, versions), as of 2026-11.
"""
