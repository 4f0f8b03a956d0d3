"""Servers that speak Anthropic's Messages API as a backend. See docs/guides/upstreams.md."""

from modelport.backends.anthropic.backend import AnthropicBackend

__all__ = ["AnthropicBackend"]
