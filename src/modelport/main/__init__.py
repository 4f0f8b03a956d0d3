"""The composition root: the one place where the parts of a gateway worker are put together."""

from modelport.main.platform import open_platform
from modelport.main.worker import serve_worker

__all__ = ["open_platform", "serve_worker"]
