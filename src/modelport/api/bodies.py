"""Request bodies: read within bounds, decoded once, refused with the member that is wrong."""

from __future__ import annotations

import re
from array import array
from itertools import accumulate
from typing import Any, TypeVar

import msgspec

from modelport.errors import BadRequest

_T = TypeVar("_T")
_STRING = re.compile(rb'"[^"]*"')
_UP = b"\x01"
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_AT = re.compile(r" - at `\$\.?(.*)`$")
_MISSING = re.compile(r"missing required field `(.*?)`")
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_decoders: dict[type, msgspec.json.Decoder[Any]] = {}

MAX_METADATA_MEMBERS = 16
MAX_METADATA_NAME = 64
MAX_METADATA_VALUE = 512


def check_depth(body: bytes, *, most: int) -> None:
    """Raises: BadRequest for JSON nested deeper than `most`.

    All of it runs inside C: strings are dropped, brackets become steps up and down, and the steps are added up. The
    time is in proportion to the body, however it is nested.
    """
    if _opens_at_most(body, most):
        return
    bare = _STRING.sub(b"", body.replace(b"\\\\", b"").replace(b'\\"', b""))
    steps = bare.translate(_STEPS, _NOT_BRACKETS)
    # The plain case first, so that the sums below stay small numbers, which Python keeps ready-made.
    if _UP * (most + 1) in steps or max(accumulate(array("b", steps)), default=0) > most:
        raise BadRequest(f"The JSON is nested deeper than {most} levels.")


def _opens_at_most(body: bytes, most: int) -> bool:
    """Whether there are so few opening brackets that they can't be nested deeper.

    Looking for one after the other runs through long texts several times as fast as counting does.
    """
    found = 0
    for bracket in (b"{", b"["):
        at = body.find(bracket)
        while at >= 0:
            found += 1
            if found > most:
                return False
            at = body.find(bracket, at + 1)
    return True


def decode(body: bytes, type_: type[_T], *, max_depth: int) -> tuple[_T, dict[str, msgspec.Raw]]:
    """The typed view of a JSON body, and each of its top-level members as the bytes that were sent.

    Raises: BadRequest that names the member.
    """
    check_depth(body, most=max_depth)
    decoder = _decoders.get(type_)
    if decoder is None:
        decoder = _decoders[type_] = msgspec.json.Decoder(type_)
    try:
        return decoder.decode(body), _fields.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except UnicodeDecodeError:
        raise BadRequest("The body is not valid JSON: it is not UTF-8.") from None
    except (msgspec.DecodeError, RecursionError) as error:
        what = "it is empty" if not body.strip() else str(error).removeprefix("JSON is malformed: ")
        raise BadRequest(f"The body is not valid JSON: {what}.") from None


def _invalid(message: str) -> BadRequest:
    at = _AT.search(message)
    missing = _MISSING.search(message)
    path = at.group(1) if at else ""
    if missing:
        path = f"{path}.{missing.group(1)}" if path else missing.group(1)
    return BadRequest(f"{_AT.sub('', message)}{f' (at {path})' if path else ''}.", param=path or None)


def metadata_tags(metadata: dict[str, Any] | None) -> dict[str, str]:
    """The call's tags for cost attribution. Raises: BadRequest when they are too many, too long, or no scalars."""
    if not metadata:
        return {}
    if len(metadata) > MAX_METADATA_MEMBERS:
        raise BadRequest(f"metadata has more than {MAX_METADATA_MEMBERS} members.", param="metadata")
    tags: dict[str, str] = {}
    for name, value in metadata.items():
        text = value if isinstance(value, str) else _scalar(name, value)
        if len(name) > MAX_METADATA_NAME or len(text) > MAX_METADATA_VALUE:
            raise BadRequest(
                f"metadata names have at most {MAX_METADATA_NAME} characters, values {MAX_METADATA_VALUE}.",
                param=f"metadata.{name[:MAX_METADATA_NAME]}",
            )
        tags[name] = text
    return tags


def _scalar(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    raise BadRequest("metadata values are strings, numbers or booleans.", param=f"metadata.{name[:MAX_METADATA_NAME]}")
