"""The slides that a path or a pattern selects, and what their results are called."""

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from densenet_flax.common.errors import InputError
from densenet_flax.data.images.formats import IMAGE_SUFFIXES, SCANNER_SUFFIXES
from densenet_flax.data.sources.files import OUTPUT_MARK
from densenet_flax.inference.batch.image_files import find_images
from densenet_flax.inference.batch.overlay_files import fold, folders_above

_DICOM = ".dcm"
# A slide may also be a flat image.
SLIDE_SUFFIXES = (*SCANNER_SUFFIXES, _DICOM, *IMAGE_SUFFIXES)
# Names in the output folder that no slide may have.
_RESERVED = ("slides.csv", ".lock", OUTPUT_MARK)


@dataclasses.dataclass(frozen=True)
class SlideFile:
    """A slide.

    Attributes:
      path: of its file; of a DICOM slide, of the folder that holds its files.
      name: of its folder in the output; unique, and may contain '/'.
    """

    path: Path
    name: str

    def state(self) -> str:
        """A digest of the size and time of all its files, which stand for the content.

        Raises:
          InputError: it cannot be looked up.
        """
        digest = hashlib.sha256()
        try:
            for path in self._parts():
                status = path.stat()
                digest.update(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror or error})") from error
        return digest.hexdigest()

    def _parts(self) -> list[Path]:
        folder = self.path
        if self.path.suffix.lower() == ".mrxs":  # the pixels are in a folder beside it
            folder = self.path.with_suffix("")
        inside = sorted(folder.iterdir()) if folder.is_dir() else []
        return [self.path, *inside] if folder != self.path else inside or [self.path]


def find_slides(slides: str) -> list[SlideFile]:
    """Finds the slides of a path or a pattern; a folder with DICOM files is one slide.

    Raises:
      InputError: there is none.
    """
    files = find_images(slides, flag="--slides", example="slides/**/*.svs", suffixes=SLIDE_SUFFIXES)
    paths: dict[str, Path] = {}
    for file in files:
        folder, single = os.path.dirname(file.name), len(files) == 1
        if file.path.suffix.lower() == _DICOM and not single:
            paths[folder or file.path.parent.name] = file.path.parent
        else:
            paths[file.name] = file.path
    names = slide_names(paths)
    return [SlideFile(path, names[name]) for name, path in paths.items()]


def slide_names(files: Iterable[str]) -> dict[str, str]:
    """Names of the folders of slides in the output, by the names of their files.

    They are those of the files without their ending, which stays where names differ in it alone.
    They differ in file systems that ignore case or the form of accents, too.
    """
    files = list(files)
    stems = Counter(fold(_stem(name)) for name in files)
    taken = {fold(folder) for name in files for folder in folders_above(name)}
    taken.update(_RESERVED)
    names = {}
    for file in files:
        name = _stem(file) if stems[fold(_stem(file))] == 1 else file
        while fold(name) in taken:
            name += "~"
        taken.add(fold(name))
        names[file] = name
    return names


def _stem(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in SLIDE_SUFFIXES else name
