"""JSON files that this package writes, read as files that anything may have happened to."""

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from densenet_flax.common.errors import InputError
from densenet_flax.common.reading import MAX_TEXT_BYTES, read_file
from densenet_flax.common.trees import JsonDict
from densenet_flax.storage.atomic import write_text

_CHECKSUM = "crc32"  # the key of a file's checksum
_MAX_DEPTH = 100  # of lists and mappings in each other, so that no code that walks through fails


def write_json_object(path: Path, content: Mapping[str, Any], *, indent: int | None = None) -> None:
    """Writes a JSON object with its checksum; a reader sees the old file or the new one."""
    content = json.loads(json.dumps(dict(content)))
    text = json.dumps({**content, _CHECKSUM: _checksum(content)}, indent=indent)
    write_text(path, text + "\n")


def read_json_object(
    path: Path,
    advice: str,
    *,
    pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> JsonDict:
    """Reads a file that holds one JSON object; its checksum is checked and left out.

    Args:
      path: of the file. Those that earlier versions wrote have no checksum.
      advice: what the user can do, for the error message.
      pairs_hook: `object_pairs_hook` of `json.loads`; may raise ValueError.

    Raises:
      InputError: there is no such file, or it is something else, or damaged.
    """
    try:
        data = read_file(path, max_bytes=MAX_TEXT_BYTES)
    except InputError as error:
        raise InputError(f"{error}; {advice}") from error
    try:
        content = json.loads(data.decode(), object_pairs_hook=pairs_hook)
        if not isinstance(content, dict):
            raise ValueError(f"a JSON object is expected, not {type(content).__name__}")
        _check_depth(content)
        checksum = content.pop(_CHECKSUM, None)
        if checksum not in (None, _checksum(content)):
            raise ValueError(
                "it was changed after it was written: its checksum differs; to keep a change that "
                f"was made on purpose, remove the line {_CHECKSUM!r}"
            )
    except (ValueError, RecursionError, MemoryError) as error:
        reason = f"{error}"[:200] or type(error).__name__
        raise InputError(f"{path}: cannot be read ({reason}); {advice}") from error
    return content


def _checksum(content: Mapping[str, Any]) -> int:
    """CRC-32 of the values, however they are written."""
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _check_depth(content: Any) -> None:
    level = [content]
    for _ in range(_MAX_DEPTH):
        level = [
            value
            for item in level
            for value in (item.values() if isinstance(item, dict) else item)
            if isinstance(value, dict | list)
        ]
        if not level:
            return
    raise ValueError(f"lists and objects are nested deeper than {_MAX_DEPTH}")
