"""What every upstream server has in common, whatever dialect it speaks: see `client`, and docs/guides/upstreams.md."""

from modelport.backends.upstream.client import UpstreamClient

__all__ = ["UpstreamClient"]
