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

_SLIDE = r"SOB_(B|M)_(A|F|PT|TA|DC|LC|MC|PC)[-_](\d\d)-(\d+)([A-Z]*)"
# Copies of BreakHis are JPEG, TIFF and in other case.
_NAME = re.compile(_SLIDE.replace("[-_]", "-") + r"-(40|100|200|400)-(\d+)\.\w+", re.IGNORECASE)
_SLIDE_IN_PATH = re.compile(rf"(?<![A-Z0-9]){_SLIDE}(?![A-Z0-9])", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class SlideName:
    """What a BreakHis name says about the slide."""

    label: str  # 'benign' or 'malignant'
    subtype: str  # 'adenosis', …
    year: int  # 14 in all of BreakHis
    slide_id: str  # '22549AB'
    case: str  # '22549', the slide id without its letters

    def patient(self, group: str) -> str:
        """Returns the patient by one of GROUPS."""
        return patient_groups([self.subtype], [self.slide_id], [self.case])[group].item()


@dataclasses.dataclass(frozen=True)
class ImageName(SlideName):
    """What a BreakHis file name says."""

    magnification: int
    sequence: int


def parse_name(name: str) -> ImageName | None:
    """Reads a file name, with any suffix and in any case; None if it is not one of BreakHis's."""
    # Folders are not consulted: they write `SOB_B_A_14-…` where files write `SOB_B_A-14-…`.
    match = _NAME.fullmatch(name)
    slide = _slide(*match.groups()[:5]) if match else None
    if not match or slide is None:
        return None
    return ImageName(**vars(slide), magnification=int(match[6]), sequence=int(match[7]))


def find_slide(path: str) -> SlideName | None:
    """Finds BreakHis's name of a slide in a path, whatever is before and behind it; None if none.

    Copies have names such as `aug_1_SOB_B_A-14-22549AB-40-001 (2).jpg`, or the slide's in a folder
    alone. The last such name in the path counts.
    """
    matches = _SLIDE_IN_PATH.findall(path)
    return _slide(*matches[-1]) if matches else None


def _slide(letter: str, token: str, year: str, number: str, block: str) -> SlideName | None:
    subtype, label = SUBTYPES[token.upper()]
    if label[0].upper() != letter.upper():
        return None
    return SlideName(label, subtype, int(year), number + block.upper(), number)


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
