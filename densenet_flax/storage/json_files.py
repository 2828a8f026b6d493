"""JSON files that this package wrote, read as files that anything may have happened to."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from densenet_flax.common.errors import InputError
from densenet_flax.common.reading import MAX_TEXT_BYTES, read_file
from densenet_flax.common.trees import JsonDict


def read_json_object(
    path: Path,
    advice: str,
    *,
    pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> JsonDict:
    """Reads a file that holds one JSON object.

    Args:
      path: of the file.
      advice: what the user can do, for the error message.
      pairs_hook: `object_pairs_hook` of `json.loads`; may raise ValueError.

    Raises:
      InputError: there is no such file, or it is something else.
    """
    try:
        data = read_file(path, max_bytes=MAX_TEXT_BYTES)
    except InputError as error:
        raise InputError(f"{error}; {advice}") from error
    try:
        content = json.loads(data.decode(), object_pairs_hook=pairs_hook)
        if not isinstance(content, dict):
            raise ValueError(f"a JSON object is expected, not {type(content).__name__}")
    except (ValueError, RecursionError, MemoryError) as error:
        reason = f"{error}"[:120] or type(error).__name__
        raise InputError(f"{path}: cannot be read ({reason}); {advice}") from error
    return content
