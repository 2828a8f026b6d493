"""Images of every format that is read."""

import functools
import io
import random
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from densenet_flax.data.images.decode import MIN_SIDE, decode
from densenet_flax.data.images.formats import MAX_PIXELS
from densenet_flax.data.synthetic.tissue import draw_stain, draw_tile
from tests.fuzz.mutation import cut, damage, flip_bit
from tests.fuzz.target import RANDOM_DAMAGE, Target

_SIZE = (44, 29)


@functools.cache
def tile(seed: int = 0) -> Image.Image:
    """A drawn tile."""
    rng = np.random.default_rng(seed)
    pixels, _ = draw_tile(rng, 0, draw_stain(rng), _SIZE)
    return Image.fromarray(pixels)


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _deep(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x112] = 6
    return exif


def _tiff(compression: str, **options: Any) -> Callable[[], bytes]:
    return lambda: encode(tile(), "TIFF", compression=compression, **options)


# Samples of each target.
_SAMPLES: dict[str, dict[str, Callable[[], bytes]]] = {
    "png": {
        "rgb": lambda: encode(tile(), "PNG"),
        "palette": lambda: encode(tile().quantize(16), "PNG", transparency=3),
        "deep": lambda: encode(_deep(tile()), "PNG"),
        "alpha": lambda: encode(tile().convert("LA"), "PNG"),
        "bits": lambda: encode(tile().convert("1"), "PNG"),
        "interlaced": lambda: interlaced_png(np.asarray(tile())),
    },
    "jpeg": {
        "baseline": lambda: encode(tile(), "JPEG"),
        "restarts": lambda: encode(tile(), "JPEG", restart_marker_blocks=2),
        "gray": lambda: encode(tile().convert("L"), "JPEG"),
        "cmyk": lambda: encode(tile().convert("CMYK"), "JPEG"),
        "turned": lambda: encode(tile(), "JPEG", exif=_exif()),
        "several": lambda: encode(tile(), "MPO", save_all=True, append_images=[tile(1)]),
    },
    "progressive-jpeg": {
        "rgb": lambda: encode(tile(), "JPEG", progressive=True, quality=30),
    },
    "tiff": {
        "raw": _tiff("raw"),
        "lzw": _tiff("tiff_lzw"),
        "deflate": _tiff("tiff_adobe_deflate"),
        "jpeg": _tiff("jpeg"),
        "packbits": _tiff("packbits"),
        "fax": lambda: encode(tile().convert("1"), "TIFF", compression="group4"),
        "deep": lambda: encode(_deep(tile()), "TIFF"),
        "pages": lambda: _pages(),
    },
    "bmp": {
        "rgb": lambda: encode(tile(), "BMP"),
        "palette": lambda: encode(tile().quantize(16), "BMP"),
    },
    "webp": {
        "lossy": lambda: encode(tile(), "WEBP"),
        "lossless": lambda: encode(tile(), "WEBP", lossless=True),
        "alpha": lambda: encode(tile().convert("RGBA"), "WEBP"),
    },
    "gif": {
        "one": lambda: encode(tile().quantize(16), "GIF"),
        "several": lambda: encode(tile(), "GIF", save_all=True, append_images=[tile(1)]),
    },
    "jpeg2000": {"rgb": lambda: encode(tile(), "JPEG2000")},
    "avif": {"rgb": lambda: encode(tile(), "AVIF", speed=10)},
}


def _pages() -> bytes:
    """An ImageJ stack: red, green and blue as gray pages."""
    description = "ImageJ=1.53\nimages=3\nchannels=3\n"
    red, *others = tile().split()
    return encode(red, "TIFF", save_all=True, append_images=others, description=description)


def _make(name: str, folder: Path) -> None:
    for sample, content in _SAMPLES[name].items():
        (folder / sample).mkdir()
        (folder / sample / "tile.img").write_bytes(content())


def _read(folder: Path) -> np.ndarray:
    return decode((folder / "tile.img").read_bytes(), folder / "tile.img")


def _is_tile(written: np.ndarray, read: np.ndarray) -> str:
    if read.dtype != np.uint8 or read.ndim != 3 or read.shape[2] != 3:
        return f"no RGB image: {read.dtype} {read.shape}"
    height, width, _ = read.shape
    if min(height, width) < MIN_SIDE or height * width > MAX_PIXELS:
        return f"no tile: {width}×{height}"
    return ""


# Damage that leaves the checksums right.


def repaired_png(rng: random.Random, data: bytes) -> bytes:
    """Damage, and then the right checksum in each chunk."""
    return _with_checksums(damage(rng, data))


def _with_checksums(data: bytes) -> bytes:
    repaired, at = data[:8], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        body = data[at + 4 : at + 8 + length]
        if len(body) < 4 + length:
            break
        repaired += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return repaired + data[at:]


def changed_chunks(rng: random.Random, data: bytes) -> bytes:
    """Chunks of a PNG, lost, doubled, moved, empty or with other data; the checksums right."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    for _ in range(rng.choice((1, 1, 2, 3))):
        one, other = rng.randrange(len(chunks)), rng.randrange(len(chunks))
        kind, content = chunks[one]
        change = rng.randrange(6)
        if change == 0 and len(chunks) > 1:
            del chunks[one]
        elif change == 1:
            chunks.insert(other, chunks[one])
        elif change == 2:
            chunks[one], chunks[other] = chunks[other], chunks[one]
        elif change == 3:
            chunks[one] = kind, rng.choice((b"", content[: len(content) // 2], bytes(len(content))))
        elif change == 4 and kind == b"IHDR":
            sizes = struct.pack(">II", *(rng.choice((0, 1, 8, 70, 8192, 2**31)) for _ in "hw"))
            chunks[one] = kind, sizes + content[8:]
        else:
            kind = rng.choice((b"zTXt", b"iCCP", b"iTXt", b"eXIf", b"tRNS"))
            chunks.insert(other, (kind, b"k\0\0" + _zeros(rng.choice((9, 10**6, 10**8)))))
    return _png(chunks)


@functools.cache
def _zeros(size: int) -> bytes:
    return zlib.compress(bytes(size), 1)


def cut_and_closed(rng: random.Random, data: bytes) -> bytes:
    """A JPEG that was cut within its blocks and got the mark of an end.

    Bytes for the decoder to read ahead may stand for the last blocks (`data.images.integrity`), so
    some more are lost.
    """
    start = data.index(b"\xff\xda") + 14
    end = data.index(b"\xff\xd9", start)  # of the first image, where a file has several
    return data[: rng.randrange(start, end - 38)] + b"\xff\xd9"


def changed_segments(rng: random.Random, data: bytes) -> bytes:
    """A segment of a JPEG, lost, doubled, moved, of another length or with other tables."""
    at = [i for i in range(len(data) - 3) if data[i] == 0xFF and 0xC0 <= data[i + 1] < 0xFF]
    start, end = sorted(rng.sample([*at, len(data)], 2))
    segment, target = data[start:end], rng.choice(at)
    change = rng.randrange(4)
    if change == 0:
        return data[:start] + data[end:]
    if change == 1:
        return data[:target] + segment * rng.choice((1, 1, 3, 200)) + data[target:]
    if change == 2:
        return (
            data[: start + 2] + struct.pack(">H", rng.choice((0, 1, 2, 65535))) + data[start + 4 :]
        )
    return data[:start] + damage(rng, segment) + data[end:]


def interlaced_png(pixels: np.ndarray) -> bytes:
    """An RGB image as an interlaced PNG, which Pillow cannot write."""
    starts = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
    rows = b"".join(
        b"\0" + row.tobytes()
        for x, y, across, down in (*starts, (0, 1, 1, 2))
        for row in pixels[y::down, x::across]
    )
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 1)
    return _png([(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])


def _png(chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


_MUTATORS = {
    "png": (*RANDOM_DAMAGE, repaired_png, repaired_png, changed_chunks, changed_chunks),
    "jpeg": (*RANDOM_DAMAGE, changed_segments, changed_segments, cut_and_closed),
    "progressive-jpeg": (*RANDOM_DAMAGE, changed_segments, changed_segments),
}
# What a format shows: a PNG has checksums; all others at least how much of them there is.
_EXACT = {"png": (damage, flip_bit, cut), "jpeg": (cut, cut_and_closed)}
_WEIGHTS = {"png": 3, "jpeg": 3, "tiff": 4, "avif": 1}

IMAGE_TARGETS = [
    Target(
        f"images/{name}",
        functools.partial(_make, name),
        _read,
        _MUTATORS.get(name, RANDOM_DAMAGE),
        exact=_EXACT.get(name, (cut,)),
        accepts=_is_tile,
        weight=_WEIGHTS.get(name, 2),
    )
    for name in _SAMPLES
]
