"""Pictures from strangers: bytes in, pixels out, with a bound on everything.

The kind is told from the first bytes and the size from the header, before anything is decoded; only five decoders
are open at all. What is wrong with a picture is said in a `BadRequest`.
"""

from __future__ import annotations

import binascii
import io
import re
import struct
import threading
import warnings
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pybase64
from numpy.typing import NDArray
from PIL import Image

from modelport.backends.onnx.runner import shown
from modelport.errors import BadRequest

Pixels = NDArray[np.uint8]

# Pillow's own bound only warns, and is one number for the whole process; `PictureLimits` takes its place.
Image.MAX_IMAGE_PIXELS = None
# It also warns of broken metadata, which strangers could fill our log with.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_ACCEPTED = "JPEG, PNG, WebP, GIF and BMP pictures are accepted"
_DATA_URL = re.compile(r"data:([a-zA-Z0-9.+/-]{0,100})((?:;[a-zA-Z0-9=_.+-]{1,100}){0,4}),")
_MEDIA_TYPES = frozenset(
    ("image/jpeg", "image/jpg", "image/png", "image/webp", "image/gif", "image/bmp", "image/x-ms-bmp", "")
)
# Enough for the longest signature, and a whole number of base64 groups.
_HEAD_CHARACTERS = 24
# No side may be longer, whatever the product: decoders keep buffers for each line.
_MAX_SIDE = 65_535
# Of pictures from this size on one is decoded at a time, so that memory stays flat however many arrive at once.
_LARGE_PIXELS = 4_000_000
_one_large = threading.Lock()
# What Pillow's decoders raise on broken files; a property test looks for more.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    AttributeError,
    EOFError,
    AssertionError,
    NotImplementedError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_ORIENTATION = 0x0112
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class PictureLimits:
    """What a picture may be: bytes as sent (before base64), pixels as decoded."""

    max_bytes: int
    max_pixels: int


def picture_bytes(value: Any, limits: PictureLimits, *, param: str) -> bytes:
    """The file's bytes out of an input: bytes, base64, a data URL, or an object with `image` or `b64`.

    Raises: BadRequest; what does not begin like a picture is refused before it is decoded.
    """
    if isinstance(value, dict):
        value = value.get("image", value.get("b64"))
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value) if len(value) <= limits.max_bytes else bytes(value[:_HEAD_CHARACTERS])
        _check_kind(data[:_HEAD_CHARACTERS], param)
        _check_length(len(value), limits, param)
        return data
    if not isinstance(value, str):
        raise BadRequest(
            f"An input is a picture as base64 or as a data URL, or an object with it as 'image', not {shown(value)}.",
            param=param,
        )
    return _from_text(value, limits, param)


def to_pixels(data: bytes, limits: PictureLimits, *, size: int, crop_fraction: float, param: str) -> Pixels:
    """The middle of the picture as (size, size, 3) RGB, upright, cut and scaled as the model was evaluated.

    Raises: BadRequest when it is broken or too large.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            pixels = _check_dimensions(image, limits, param)
            if pixels < _LARGE_PIXELS:
                return _decode(image, size, crop_fraction)
            with _one_large:
                return _decode(image, size, crop_fraction)
    except _DECODER_ERRORS as error:
        raise BadRequest("The picture is broken or cut short.", param=param, internal=repr(error)) from error


def _from_text(text: str, limits: PictureLimits, param: str) -> bytes:
    if text.startswith("data:"):
        match = _DATA_URL.match(text)
        if match is None or not match[2].lower().endswith(";base64"):
            raise BadRequest("A data URL has the form data:image/png;base64,…", param=param)
        if match[1].lower() not in _MEDIA_TYPES:
            raise BadRequest(f"The data URL holds {match[1]!r}: {_ACCEPTED}.", param=param)
        text = text[match.end() :]
    elif text.startswith(("http://", "https://")):
        raise BadRequest("Addresses are not fetched: send the picture itself, as base64.", param=param)
    head = "".join(text[: 4 * _HEAD_CHARACTERS].split())[:_HEAD_CHARACTERS]
    _check_kind(_decoded(head[: len(head) // 4 * 4] if len(head) >= 4 else head, param), param)
    _check_length(len(text) * 3 // 4, limits, param)
    return _decoded(text, param)


def _decoded(text: str, param: str) -> bytes:
    try:
        raw = text.encode("ascii")
        if b"\n" in raw or b" " in raw or b"\r" in raw:
            raw = b"".join(raw.split())
        return pybase64.b64decode(raw, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest("The picture is not valid base64.", param=param) from error


def _check_kind(head: bytes, param: str) -> None:
    known = head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM"))
    if not known and not (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        what = "The picture is empty" if not head else "This is no picture that can be read"
        raise BadRequest(f"{what}: {_ACCEPTED}.", param=param)


def _check_length(size_bytes: int, limits: PictureLimits, param: str) -> None:
    if size_bytes > limits.max_bytes:
        raise BadRequest(
            f"The picture has {size_bytes:,} bytes; at most {limits.max_bytes:,} are accepted.", param=param
        )


def _check_dimensions(image: Image.Image, limits: PictureLimits, param: str) -> int:
    width, height = image.size
    # Only a JPEG that is no progressive one can be decoded small, without ever being held whole.
    scalable = image.format == "JPEG" and not image.info.get("progressive")
    most = limits.max_pixels if scalable else limits.max_pixels // 3
    if width < 1 or height < 1:
        raise BadRequest("The picture has no pixels.", param=param)
    if width * height > most or max(width, height) > _MAX_SIDE:
        raise BadRequest(f"The picture has {width} × {height} pixels; at most {most:,} are accepted.", param=param)
    return width * height


def _decode(image: Image.Image, size: int, crop_fraction: float) -> Pixels:
    if image.format == "JPEG":
        # The decoder itself halves large pictures, as long as twice the wanted detail is left.
        shorter = round(2 * size / crop_fraction)
        image.draft(None, (shorter, shorter))
    orientation = _orientation(image)
    width, height = image.size
    side = min(width, height) * crop_fraction
    box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    square = _on_white(_plain(image).resize((size, size), Image.Resampling.BICUBIC, box=box))
    if orientation in _TRANSPOSES:
        # The middle square stays the middle square however the picture is turned.
        square = square.transpose(_TRANSPOSES[orientation])
    return np.asarray(square, dtype=np.uint8)


def _plain(image: Image.Image) -> Image.Image:
    """RGB or RGBA, whatever it was; 16 bits of grey are cut to 8."""
    if image.mode.startswith("I"):
        # Pillow reads 16-bit grey into one of several modes, always with values up to 65,535.
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    transparent = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    return image.convert("RGBA" if transparent else "RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """RGB; what is transparent shows white. Done on the small picture, since it makes copies."""
    if image.mode == "RGB":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")


def _orientation(image: Image.Image) -> int:
    """How the camera was held; 1 (upright) where that can't be read, since the picture may be good all the same."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except _DECODER_ERRORS:
        return 1
    return value if isinstance(value, int) else 1
