"""JSON files that this package wrote, read as files that anything may have happened to."""

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import JsonDict

_MAX_BYTES = 1 << 30  # the table of ten million images


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
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would never end
            raise ValueError("not a regular file")
        if status.st_size > _MAX_BYTES:
            raise ValueError(f"{status.st_size:,} bytes are far too many")
        content = json.loads(path.read_text("utf-8"), object_pairs_hook=pairs_hook)
        if not isinstance(content, dict):
            raise ValueError(f"a JSON object is expected, not {type(content).__name__}")
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing; {advice}") from error
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or f"{error}"[:120] or type(error).__name__
        raise InputError(f"{path}: cannot be read ({reason}); {advice}") from error
    return content
