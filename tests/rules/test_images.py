"""Pictures from strangers: what is refused is refused before it costs anything; what is good comes out upright RGB."""

from __future__ import annotations

import base64
import contextlib
import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from modelport.backends.onnx.pictures import PictureLimits, picture_bytes, to_pixels
from modelport.errors import BadRequest

# As in the platform itself, where pytest's own filters would take precedence.
pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\..*")
LIMITS = PictureLimits(max_bytes=20_000_000, max_pixels=51_000_000)


def pixels(value: object) -> np.ndarray:
    data = picture_bytes(value, LIMITS, param="inputs[0]")
    return to_pixels(data, LIMITS, size=32, crop_fraction=1.0, param="inputs[0]")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is huge, with pixels that would decompress forever."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    body = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body += chunk(b"IDAT", zlib.compress(bytes(1_000_000), 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


RED = Image.new("RGB", (64, 48), (255, 0, 0))
JPEG = encoded(RED, "JPEG")

HOSTILE = {
    "a bomb of 60,000 by 60,000": png_header(60_000, 60_000),
    "a line longer than any screen": png_header(100_000, 1),
    "a truncated JPEG": encoded(Image.effect_noise((400, 400), 50).convert("RGB"), "JPEG")[:2000],
    "a JPEG's first bytes": JPEG[:4],
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "text": b"hello",
    "nothing": b"",
    "zeros": bytes(1000),
    "TIFF, whose decoder is closed": encoded(RED, "TIFF"),
    "text in base64": base64.b64encode(b"hello, I am no picture").decode(),
    "no base64 at all": "!!! not base64 !!!",
    "base64 that breaks later": base64.b64encode(JPEG).decode() + "é",
    "an address": "https://example.com/cat.jpg",
    "a data URL of SVG": "data:image/svg+xml;base64,PHN2Zy8+",
    "a data URL without base64": "data:image/png,abc",
    "a data URL without an end": "data:image/png;base64",
    "an empty text": "",
    "a number": 7,
    "null": None,
    "an object without a picture": {"picture": "x"},
    "a list": [1, 2, 3],
}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_inputs_are_refused_with_the_inputs_name(value: object) -> None:
    with pytest.raises(BadRequest) as refused:
        pixels(value)
    assert refused.value.param == "inputs[0]"
    assert len(refused.value.message) > 20


@pytest.mark.parametrize("zeros", [bytes(100_000_000), base64.b64encode(bytes(75_000_000)).decode()])
def test_a_hundred_megabytes_of_zeros_are_refused_without_a_copy(zeros: bytes | str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadRequest, match="no picture"):
            pixels(zeros)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_a_picture_with_too_many_bytes_is_refused() -> None:
    with pytest.raises(BadRequest, match="20,000,000"):
        pixels(JPEG + bytes(20_000_000))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "I;16"])
def test_every_format_and_colour_mode_becomes_rgb(kind: str, mode: str) -> None:
    """White stays white whatever way it was stored."""
    image = Image.new("L", (64, 48), 255)
    image = Image.fromarray(np.full((48, 64), 65_535, np.uint16)) if mode == "I;16" else image.convert(mode)
    if kind != "PNG" and mode in ("I;16", "LA", "RGBA", "CMYK") and not (kind == "JPEG" and mode == "CMYK"):
        image = Image.new("RGB", (64, 48), (255, 255, 255))
    if kind == "PNG" and mode == "CMYK":
        image = image.convert("RGB")
    if kind == "JPEG" and image.mode in ("P", "1"):
        image = image.convert("L")
    out = pixels(encoded(image, kind))
    assert out.shape == (32, 32, 3)
    assert out.dtype == np.uint8
    assert out.min() >= 253


def test_transparent_parts_show_white() -> None:
    assert pixels(encoded(Image.new("RGBA", (64, 64), (0, 0, 0, 0)), "PNG")).min() == 255


def test_sixteen_bits_keep_their_middle() -> None:
    grey = Image.fromarray(np.full((48, 64), 32_768, np.uint16))
    assert np.unique(pixels(encoded(grey, "PNG"))).tolist() == [128]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_camera_may_have_been_held_any_way(orientation: int) -> None:
    """A picture stored turned, with the EXIF mark for it, comes out as the upright one does."""
    upright = Image.new("RGB", (64, 64), (255, 255, 255))
    upright.paste((0, 0, 0), (0, 0, 32, 32))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = pixels(encoded(stored, "PNG", exif=exif))
    assert out[4, 4].tolist() == [0, 0, 0]
    assert out[4, 28].tolist() == out[28, 4].tolist() == out[28, 28].tolist() == [255, 255, 255]


def test_a_broken_orientation_mark_costs_nothing() -> None:
    data = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", 20) + b"Exif\0\0MM\0*" + b"\xff" * 8 + JPEG[2:]
    assert pixels(data)[0, 0].tolist()[0] > 250


def test_a_large_photograph_is_decoded_small() -> None:
    """48 megapixels, as telephones make them, pass; the decoder never holds them whole."""
    large = encoded(Image.new("RGB", (8000, 6000), (0, 0, 255)), "JPEG")
    assert pixels(large)[0, 0].tolist()[2] > 250


def test_base64_may_have_line_breaks_and_come_as_an_object_or_data_url() -> None:
    text = base64.encodebytes(JPEG).decode()
    plain = "".join(text.split())
    expected = pixels(JPEG)
    for value in (text, {"b64": plain}, {"image": plain}, f"data:image/jpeg;base64,{plain}", memoryview(JPEG)):
        assert np.array_equal(pixels(value), expected)


@given(st.binary(max_size=300), st.sampled_from([JPEG, encoded(RED, "PNG"), encoded(RED, "GIF"), encoded(RED, "WEBP")]))
def test_no_bytes_at_all_break_it(noise: bytes, start: bytes) -> None:
    """Whatever comes is a picture or a BadRequest, never another exception."""
    for data in (noise, start[: len(noise)] + noise, start[: len(start) // 2] + noise + start[len(start) // 2 :]):
        with contextlib.suppress(BadRequest):
            assert pixels(data).shape == (32, 32, 3)


@given(st.text(max_size=200))
def test_no_text_at_all_breaks_it(text: str) -> None:
    """Whatever comes is a picture or a BadRequest, never another exception."""
    with pytest.raises(BadRequest):
        pixels(text)
