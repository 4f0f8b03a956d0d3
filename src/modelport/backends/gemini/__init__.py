"""Google's Gemini API as a backend. See docs/guides/upstreams.md."""

from modelport.backends.gemini.backend import GeminiBackend

__all__ = ["GeminiBackend"]
