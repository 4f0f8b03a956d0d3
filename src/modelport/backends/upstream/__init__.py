"""What every upstream server has in common, whatever dialect it speaks: see `backend`, and docs/guides/upstreams.md."""

from modelport.backends.upstream.backend import Request, UpstreamBackend
from modelport.backends.upstream.lane import Reader

__all__ = ["Reader", "Request", "UpstreamBackend"]
