"""HTTP/1.1 to one upstream: a keep-alive pool on asyncio and httptools. See docs/decisions/0008-transport.md."""

from modelport.backends.transport.connection import Timeouts
from modelport.backends.transport.pool import HttpPool, header_block
from modelport.backends.transport.response import Response

__all__ = ["HttpPool", "Response", "Timeouts", "header_block"]
