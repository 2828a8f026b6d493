"""Whose a tile is: one rule for training and prediction, on the path relative to the data's root.

The rule is kept with the weights, so that a file has the same patient in the table of predictions
as it had in training.
"""

import re

from densenet_flax.data.breakhis.names import GROUPS, find_slide
from densenet_flax.data.sources.similar_names import name_key

# Where the patients of a data set came from.
PATTERN, BREAKHIS, TABLE, UNKNOWN = "pattern", "breakhis", "table", "unknown"


def first_match(pattern: str, file: str) -> str:
    r"""Returns the first group of the first match in a path, or the whole match; '' if none.

    Where the path has no match it is searched with '/' in front, so that a pattern such as
    `/(\w+)_` also finds a name that no folder is above.
    """
    match = re.search(pattern, file) or re.search(pattern, f"/{file}")
    if not match:
        return ""
    return (match.group(1) if match.re.groups else match.group()) or ""


def find_patient(
    file: str, *, pattern: str = "", source: str = "", group: str = "", merge: bool = False
) -> str:
    """Returns the patient that a path states; '' if it states none.

    Args:
      file: the path relative to the root of the data, with '/'.
      pattern: see `first_match`. Without it, names of BreakHis state the patient.
      source: where the patients came from in training; '' if that is not known. A table's are not
        in the paths.
      group: one of BreakHis's `GROUPS`; others count as the coarsest.
      merge: whether names that differ only in spelling are one patient.
    """
    if pattern:
        patient = first_match(pattern, file)
        return name_key(patient) if merge else patient
    slide = find_slide(file) if source != TABLE else None
    if slide is None:
        return ""
    return slide.patient(group if group in GROUPS else GROUPS[0])
