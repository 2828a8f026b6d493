"""Images that a data set contains more than once."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence

from densenet_flax.common.errors import InputError
from densenet_flax.data.images.array_cache import PreparedImages


def drop_duplicates(
    prepared: PreparedImages, labels: Sequence[int], policy: str, name: str
) -> tuple[PreparedImages, list[int], list[str]]:
    """Applies a policy, 'keep', 'drop' or 'error', to images with the same decoded pixels.

    With 'drop' the first of several stays, or none if their labels differ, as nobody can tell which
    label is right. `name` is the data set's in messages.

    Returns:
      The images that are kept, their row numbers among all, and notes for a reader of results.

    Raises:
      InputError: there are duplicates, and the policy is 'error'; or 'drop' would leave nothing.
    """
    rows_by_content = defaultdict(list)
    for row, content in enumerate(prepared.table["content"]):
        rows_by_content[content].append(row)
    duplicates = [rows for rows in rows_by_content.values() if len(rows) > 1]
    contradictory = [rows for rows in duplicates if len({labels[row] for row in rows}) > 1]
    all_rows = list(range(len(labels)))
    if not duplicates:
        return prepared, all_rows, []
    first, second = (prepared.table["file"][row] for row in duplicates[0][:2])
    summary = (
        f"{len(duplicates)} image(s) appear more than once, such as {first} and {second}; "
        f"{len(contradictory)} of them under different labels"
    )
    if policy == "error":
        raise InputError(f"{name}: {summary}; remove them, or set data.duplicates='drop'")
    if policy == "keep":
        return prepared, all_rows, [f"{summary}. All are kept"]
    dropped = {row for rows in duplicates for row in rows[1:]}
    dropped |= {rows[0] for rows in contradictory}
    kept = [row for row in all_rows if row not in dropped]
    if not kept:
        raise InputError(f"{name}: {summary}; nothing is left without them")
    key = hashlib.sha256(json.dumps(sorted(dropped)).encode()).hexdigest()[:12]
    return prepared.take(kept, key), kept, [f"{summary}. {len(dropped)} files were left out"]
