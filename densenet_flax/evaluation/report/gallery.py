"""Images that a caller drew, such as saliency maps, for the report's gallery."""

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
      caption: what it shows; screen readers read it aloud.
      png: content of the file.
      group: heading under which it is shown, such as 'Most confident mistakes'; may be ''.
    """

    caption: str
    png: bytes
    group: str = ""


def read_gallery(items: Sequence[Mapping[str, Any]]) -> list[GalleryImage]:
    """Reads `info['gallery']`.

    Args:
      items: each with 'caption', with 'png' (bytes) or 'path' (to a PNG file), and perhaps with
        'group'.

    Raises:
      InputError: an item is not a PNG; the message names it.
    """
    images = []
    for number, item in enumerate(items, start=1):
        source = f"gallery picture {number}"
        data = item.get("png")
        if data is None and item.get("path") is not None:
            source = str(item["path"])
            try:
                data = Path(item["path"]).read_bytes()
            except OSError as error:
                raise InputError(f"{source}: cannot be read ({error.strerror})") from error
        if not isinstance(data, bytes) or not data.startswith(_SIGNATURE):
            raise InputError(
                f"{source}: is not a PNG; expected 'png' (bytes) or 'path' to a PNG file"
            )
        images.append(GalleryImage(str(item.get("caption", "")), data, str(item.get("group", ""))))
    return images
