"""Whose a tile is: one rule for training and prediction, on the path relative to the data's root.

The rule is kept with the weights, so that a file has the same patient in the table of predictions
as it had in training.
"""

from collections.abc import Sequence

from densenet_flax.common.patterns import first_matches
from densenet_flax.data.breakhis.names import GROUPS, find_slide
from densenet_flax.data.sources.similar_names import name_key

# Where the patients of a data set came from.
PATTERN, BREAKHIS, TABLE, UNKNOWN = "pattern", "breakhis", "table", "unknown"


def find_patients(
    files: Sequence[str],
    *,
    pattern: str = "",
    source: str = "",
    group: str = "",
    merge: bool = False,
) -> list[str]:
    """Returns the patient that each path states; '' if it states none.

    Args:
      files: the paths relative to the root of the data, with '/'.
      pattern: see `first_matches`. Without it, names of BreakHis state the patient.
      source: where the patients came from in training; '' if that is not known. A table's are not
        in the paths.
      group: one of BreakHis's `GROUPS`; others count as the coarsest.
      merge: whether names that differ only in spelling are one patient.

    Raises:
      InputError: the pattern takes too long.
    """
    if pattern:
        found = first_matches(pattern, files, "data.patient_pattern")
        return [name_key(patient) for patient in found] if merge else found
    group = group if group in GROUPS else GROUPS[0]
    slides = [find_slide(file) if source != TABLE else None for file in files]
    return [slide.patient(group) if slide else "" for slide in slides]
