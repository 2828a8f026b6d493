"""Whether an encoded image is whole, where its format says so and Pillow does not look.

PNG has a checksum for each of its chunks. A JPEG that was cut and closed again has fewer blocks
than its header says, and a TIFF has parts behind its end. Other damage inside of a JPEG, and of a
TIFF that is not compressed, cannot be told from another picture: these formats have no checksum.
"""

import itertools
import math
import re
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from PIL import Image

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Samples of a pixel by PNG's color type.
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# First column, first row, and steps of the passes of an interlaced PNG.
_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
_BLOCK = 2**20

# In compressed JPEG data 0xff is followed by 0 or the number of a restart; else it is a marker.
_JPEG_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")
_JPEG_HUFFMAN_FRAMES = (0xC0, 0xC1)
# Each scan goes over the whole image: a file with thousands of them would take hours.
_MAX_SCANS = 100
# The decoder reads up to eight bytes ahead, before it is done with the last block.
_JPEG_PADDING = b"\x7f" * 8

# JPEG 2000: a file of boxes, the stream in one of them or alone, and the marker of its end.
_JP2_SIGNATURE, _JP2_STREAM, _JP2_END = (
    b"\0\0\0\x0cjP  \r\n\x87\n",
    b"\xff\x4f\xff\x51",
    b"\xff\xd9",
)

_STRIPS = (273, 279)  # tags of TIFF: offsets and byte counts
_TILES = (324, 325)


def check_encoded(data: bytes) -> bytes:
    """Checks the content of an image file before it is decoded, and returns what to decode.

    That is the content itself, but for a JPEG with a single scan: the mark of its end is exchanged
    for bytes that are no blocks, so that Pillow misses those that are not there.

    Raises:
      ValueError: the content is damaged or cut short.
    """
    if data.startswith(_PNG_SIGNATURE):
        for _ in _png_chunks(data):
            pass
    elif data.startswith(b"\xff\xd8\xff"):
        return _open_end_of_jpeg(data)
    # No pixels hold this marker. Without any of its tiles OpenJPEG gives an image all the same.
    is_jp2 = data.startswith((_JP2_SIGNATURE, _JP2_STREAM))
    if is_jp2 and data.find(_JP2_END, max(0, data.find(_JP2_STREAM))) < 0:
        raise ValueError("its end is missing")
    return data


def check_decoded(image: Image.Image, data: bytes) -> None:
    """Checks that all rows of a loaded image came from its file; raises a ValueError."""
    if image.format != "PNG":
        return
    header = next(_png_chunks(data)).content
    is_interlaced = len(header) > 12 and header[12]
    # Rows that are not there stay 0. Counting them means to inflate the image once more.
    last_row = image.crop((0, image.height - 1, image.width, image.height))
    if is_interlaced or not any(last_row.tobytes()):
        _check_png_rows(header, data)


def check_tiff(image: Image.Image, size: int) -> None:
    """Checks that the parts of an opened TIFF of `size` bytes are in it; raises a ValueError."""
    tags: dict[int, Any] = dict(getattr(image, "tag_v2", {}))
    offsets_tag, counts_tag = _TILES if _TILES[0] in tags else _STRIPS
    offsets, counts = tags.get(offsets_tag, ()), tags.get(counts_tag, ())
    offsets = (offsets,) if isinstance(offsets, int) else offsets
    counts = (counts,) if isinstance(counts, int) else counts
    for offset, count in itertools.zip_longest(offsets, counts, fillvalue=0):
        if offset + count > size:
            raise ValueError(f"{offset + count - size} bytes are missing at its end")
    width, height = image.size
    if tags.get(274, 1) >= 5:  # turned by a quarter, when it is loaded
        width, height = height, width
    if offsets_tag == _TILES[0]:
        across, down = tags[322], tags[323]
        # A tile is decoded as a whole, however little of it lies in the image.
        if across * down > max(2**22, 4 * width * height):
            raise ValueError(f"tiles of {across}×{down} pixels in an image of {width}×{height}")
        expected = math.ceil(width / across) * math.ceil(height / down)
    else:
        expected = math.ceil(height / min(tags.get(278, height), height))
    if len(offsets) < expected * (_samples(image) if tags.get(284) == 2 else 1):
        raise ValueError(f"it has {len(offsets)} of {expected} parts")


def _samples(image: Image.Image) -> int:
    return len(image.getbands())


class _Chunk(NamedTuple):
    kind: bytes
    content: memoryview


def _png_chunks(data: bytes) -> Iterator[_Chunk]:
    """Yields the chunks of a PNG up to its end; raises a ValueError where one is damaged."""
    view, start = memoryview(data), len(_PNG_SIGNATURE)
    while True:
        length = int.from_bytes(view[start : start + 4], "big")
        end = start + 12 + length
        if end > len(data):
            raise ValueError("its end is missing")
        kind = bytes(view[start + 4 : start + 8])
        # Of the kind and the content together.
        if zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise ValueError(f"wrong checksum of its part {kind.decode('ascii', 'replace')!r}")
        yield _Chunk(kind, view[start + 8 : end - 4])
        if kind == b"IEND":
            return
        start = end


def _check_png_rows(header: memoryview, data: bytes) -> None:
    width, height = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big")
    bits = header[8] * _PNG_SAMPLES[header[9]]
    passes = _ADAM7 if header[12] else ((0, 0, 1, 1),)
    missing = 0
    for left, top, across, down in passes:
        columns, rows = math.ceil((width - left) / across), math.ceil((height - top) / down)
        if columns > 0:
            missing += rows * (1 + math.ceil(columns * bits / 8))  # with the byte of its filter
    inflate = zlib.decompressobj()
    for chunk in _png_chunks(data):
        rest = bytes(chunk.content) if chunk.kind == b"IDAT" else b""
        while rest and missing > 0:
            missing -= len(inflate.decompress(rest, _BLOCK))
            rest = inflate.unconsumed_tail
    if missing > 0:
        raise ValueError("rows are missing")


def _open_end_of_jpeg(data: bytes) -> bytes:
    """Takes the mark of the end from a JPEG whose blocks come in one scan."""
    position, scans, frame, components = 2, 0, 0, 0
    while True:
        match = _JPEG_MARKER.search(data, position)
        if not match:
            raise ValueError("its end is missing")
        marker, position = data[match.end() - 1], match.end()
        if marker == 0xD9:
            break
        if marker == 0x01:  # the only one without content, but restarts
            continue
        length = int.from_bytes(data[position : position + 2], "big")
        content = data[position + 2 : position + length]
        position += length
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame, components = marker, content[5] if len(content) > 5 else 0
        elif marker == 0xDA:
            scans += 1
            in_one_scan = bool(content) and content[0] == components
    if not scans:
        raise ValueError("it has no pixels")
    if scans > _MAX_SCANS:
        raise ValueError(f"it has {scans} scans, at most {_MAX_SCANS} are decoded")
    if frame in _JPEG_HUFFMAN_FRAMES and scans == 1 and in_one_scan:
        return data[: match.start()] + _JPEG_PADDING
    return data
