"""Reads the images that a caller drew, such as saliency maps, for the report's gallery."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from densenet_flax.common.errors import InputError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class GalleryImage(NamedTuple):
    """A PNG and its caption."""

    png: bytes
    caption: str


def read_gallery(items: Sequence[Mapping[str, Any]]) -> dict[str, list[GalleryImage]]:
    """Reads `info['gallery']`.

    Args:
      items: each with 'caption', with 'png' (bytes) or 'path' (to a PNG file), and perhaps with
        'group', the heading under which it is shown.

    Returns:
      The images by heading, which is '' for those without a group.

    Raises:
      InputError: an item is not a PNG; the message names it.
    """
    groups: dict[str, list[GalleryImage]] = {}
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
        image = GalleryImage(data, str(item.get("caption", "")))
        groups.setdefault(str(item.get("group", "")), []).append(image)
    return groups
