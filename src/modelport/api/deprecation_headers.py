"""What every answer of something says that is being retired: `Deprecation`, `Sunset` and `Link`. Pure.

Source: RFC 9745 (Deprecation), RFC 8594 (Sunset), RFC 8288 (Link), RFC 5829 (successor-version).
"""

from __future__ import annotations

from collections.abc import Sequence
from email.utils import formatdate
from urllib.parse import quote

from modelport.catalog.deprecation import Deprecation

LIST_PATH = "/v1/deprecations"
_IN_MODEL_IDS = "/:@"


def deprecation_headers(deprecations: Sequence[Deprecation], base_url: str) -> list[tuple[bytes, bytes]]:
    """`Deprecation`, `Sunset` and `Link`. Where a route and a model end, the earlier dates are told and both links."""
    ends = [row.sunset_at_s for row in deprecations if row.sunset_at_s is not None]
    headers = [(b"deprecation", b"@%d" % min(row.deprecated_at_s for row in deprecations))]
    if ends:
        headers.append((b"sunset", formatdate(min(ends), usegmt=True).encode()))
    links = [link for row in deprecations for link in _links(row, base_url)]
    headers.append((b"link", ", ".join(links).encode()))
    return headers


def _links(row: Deprecation, base_url: str) -> list[str]:
    page = row.link or f"{base_url}{LIST_PATH}"
    links = [f'<{page}>; rel="deprecation"']
    if row.sunset_at_s is not None:
        links.append(f'<{page}>; rel="sunset"')
    if row.successor:
        path = row.successor if row.kind == "route" else f"/v1/models/{quote(row.successor, safe=_IN_MODEL_IDS)}"
        links.append(f'<{path}>; rel="successor-version"')
    return links
