"""What BreakHis's file names say: class, subtype, slide, magnification, and whose an image is."""

import dataclasses
import re
from collections.abc import Iterable

import numpy as np
from jaxtyping import Shaped

CLASS_NAMES = ("benign", "malignant")
MAGNIFICATIONS = (40, 100, 200, 400)
# The token in a file name -> (the name of its folder, the class it belongs to).
SUBTYPES = {
    "A": ("adenosis", "benign"),
    "F": ("fibroadenoma", "benign"),
    "PT": ("phyllodes_tumor", "benign"),
    "TA": ("tubular_adenoma", "benign"),
    "DC": ("ductal_carcinoma", "malignant"),
    "LC": ("lobular_carcinoma", "malignant"),
    "MC": ("mucinous_carcinoma", "malignant"),
    "PC": ("papillary_carcinoma", "malignant"),
}
LABELS = ("binary", "subtype")
# The ways to tell patients apart, from coarse to fine: the number on the slide (several slides are
# blocks of one case), the slide (one appears under two subtypes), and subtype with slide, which is
# what the literature counts.
GROUPS = ("case70", "slide81", "id82")
EXAMPLE_NAME = "SOB_B_A-14-22549AB-40-001.png"

_NAME = re.compile(
    r"SOB_(B|M)_(A|F|PT|TA|DC|LC|MC|PC)-(\d\d)-(\d+)([A-Z]*)-(40|100|200|400)-(\d+)\.png"
)


@dataclasses.dataclass(frozen=True)
class ImageName:
    """What a BreakHis file name says."""

    label: str  # 'benign' or 'malignant'
    subtype: str  # 'adenosis', …
    year: int  # 14 in all of BreakHis
    slide_id: str  # '22549AB'
    case: str  # '22549', the slide id without its letters
    magnification: int
    sequence: int

    def patient(self, group: str) -> str:
        """Returns the patient by one of GROUPS."""
        return patient_groups([self.subtype], [self.slide_id], [self.case])[group].item()


def parse_name(name: str) -> ImageName | None:
    """Reads a file name; returns None if it is not one of BreakHis's."""
    # Folders are not consulted: they write `SOB_B_A_14-…` where files write `SOB_B_A-14-…`.
    match = _NAME.fullmatch(name)
    if not match:
        return None
    letter, token, year, number, block, magnification, sequence = match.groups()
    subtype, label = SUBTYPES[token]
    if label[0].upper() != letter:
        return None
    return ImageName(
        label, subtype, int(year), number + block, number, int(magnification), int(sequence)
    )


def class_names(labels: str) -> tuple[str, ...]:
    """Returns the classes of 'binary' or 'subtype' in the order of their labels."""
    return CLASS_NAMES if labels == "binary" else tuple(name for name, _ in SUBTYPES.values())


def patient_groups(
    subtypes: Iterable[str], slide_ids: Iterable[str], cases: Iterable[str]
) -> dict[str, Shaped[np.ndarray, "N"]]:
    """Returns `Dataset.groups` of images: for each of GROUPS the patient of each image."""
    slide_ids = list(slide_ids)
    ids = [f"{subtype}/{slide}" for subtype, slide in zip(subtypes, slide_ids, strict=True)]
    columns = (list(cases), slide_ids, ids)
    return {name: np.array(column, str) for name, column in zip(GROUPS, columns, strict=True)}
