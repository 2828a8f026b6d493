"""Images to look at, handed over by whoever drew them, and shown in the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densenet_flax.common.errors import InputError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class GalleryImage:
    """One image of the gallery.

    Attributes:
        caption: What it shows, in words; also read aloud where it cannot be seen.
        png: The file's content.
        group: Heading under which it goes, such as 'Surest mistakes'; may be ''.
    """

    caption: str
    png: bytes
    group: str = ""


def read_gallery(items: Sequence[Mapping[str, Any]]) -> list[GalleryImage]:
    """Reads `info['gallery']`.

    Args:
        items: Each with 'caption', with 'png' (bytes) or 'path' (to a PNG file), and perhaps
            with 'group'.

    Raises:
        InputError: Something that is no picture; the message says which.
    """
    pictures = []
    for number, item in enumerate(items, start=1):
        where = f"gallery picture {number}"
        data = item.get("png")
        if data is None and item.get("path") is not None:
            where = str(item["path"])
            try:
                data = Path(item["path"]).read_bytes()
            except OSError as error:
                raise InputError(f"{where}: cannot be read ({error.strerror})") from error
        if not isinstance(data, bytes) or not data.startswith(_SIGNATURE):
            raise InputError(f"{where}: is no PNG; expected 'png' (bytes) or 'path' to a PNG file")
        pictures.append(
            GalleryImage(str(item.get("caption", "")), data, str(item.get("group", "")))
        )
    return pictures
