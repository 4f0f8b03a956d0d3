"""A deterministic mock of a model, steered by directives in the prompt. See docs/guides/sandbox.md."""

from modelport.backends.sandbox.backend import SandboxBackend

__all__ = ["SandboxBackend"]
