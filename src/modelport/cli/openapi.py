"""`modelport openapi`."""

from __future__ import annotations

from modelport.cli.output import print_json


def openapi() -> None:
    """Print the API's OpenAPI document.

    Example: modelport openapi > openapi.json
    """
    from modelport.api.app import described
    from modelport.api.documents import document

    print_json(document(described()))
