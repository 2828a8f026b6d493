"""Encoded images to decode, some of kinds that Pillow does not write."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def make_image(mode="RGB", size=(24, 16)):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(noise).convert(mode)


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(header, raw):
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(values, *, planar=False, photometric=None, order="<", compress=False, description=""):
    """A TIFF of an array [H, W, C], plane by plane or not; or [P, H, W, 1] as P gray pages."""
    pages = values if values.ndim == 4 else values[None]
    content, links = {"<": b"II*\0", ">": b"MM\0*"}[order] + bytes(4), [4]
    for page in pages:
        height, width, channels = page.shape
        planes = np.moveaxis(page, -1, 0) if planar else [page]
        strips, offsets = [], []
        for plane in planes:
            data = plane.astype(plane.dtype.newbyteorder(order)).tobytes()
            strips.append(zlib.compress(data) if compress else data)
            content += bytes(len(content) % 2)
            offsets.append(len(content))
            content += strips[-1]
        if photometric is None:
            photometric = 2 if channels >= 3 else 1
        tags = {
            256: (width,),
            257: (height,),
            258: (8 * page.dtype.itemsize,) * channels,
            259: (8 if compress else 1,),
            262: (photometric,),
            273: offsets,
            277: (channels,),
            278: (height,),
            279: [len(strip) for strip in strips],
            284: (2 if planar else 1,),
        }
        content += bytes(len(content) % 2)
        text = description.encode() + b"\0"
        entries = [(tag, 4, struct.pack(f"{order}{len(v)}I", *v)) for tag, v in tags.items()]
        entries += [(270, 2, text)] * bool(description)
        position = struct.pack(f"{order}I", len(content))
        content = content[: links[-1]] + position + content[links[-1] + 4 :]
        after = len(content) + 2 + 12 * len(entries) + 4
        directory, rest = struct.pack(f"{order}H", len(entries)), b""
        for tag, kind, data in sorted(entries):
            count = len(data) // (4 if kind == 4 else 1)
            value = data.ljust(4, b"\0")
            if len(data) > 4:
                value, rest = struct.pack(f"{order}I", after + len(rest)), rest + data
            directory += struct.pack(f"{order}HHI", tag, kind, count) + value
        links.append(len(content) + len(directory))
        content += directory + bytes(4) + rest
        description = ""
    return content
