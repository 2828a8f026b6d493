"""Which files below a folder are images, and what became of every other one.

    listing = list_files(Path("tiles"))
    listing.images      # {'a/1.png': Path('tiles/a/1.png'), …}
    listing.left_out    # {'a/notes.txt': '.txt', 'a/.DS_Store': 'hidden'}
    listing.describe()  # '1 image; left out: 1 .txt, 1 hidden'

Each file is in one of the two, once. Links are followed. What several names lead to counts under
one of them: the shortest path; of those as short, one without links; then the first by name.
"""

import dataclasses
import hashlib
import heapq
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

from densenet_flax.common.errors import InputError
from densenet_flax.common.reading import reading
from densenet_flax.data.images.formats import IMAGE_SUFFIXES

# Why files are left out, in the words of "left out: 3 hidden". The reason of a file of another kind
# is its suffix, such as '.svs'.
HIDDEN = "hidden"
THUMBNAIL = "thumbnails"
OWN_OUTPUT = "overlays or reports of this program"
MASK = "masks beside their image"
LINK = "links to what is counted already"
SPECIAL = "pipes, sockets or devices"
UNREADABLE = "unreadable"
OTHER = "of other kinds"

# A file that says of its folder that this program writes pictures into it.
OUTPUT_MARK = ".densenet_flax_output"

_HIDDEN_FOLDERS = ("__macosx", "lost+found", "$recycle.bin", "#recycle", "@recycle")
# Where network drives and photo managers keep small copies of the pictures beside them.
_THUMBNAIL_FOLDERS = ("@eadir", "thumbnails", "thumbs")
# A work directory has these, and its pictures are those of a report.
_WORKDIR_FILES = ("config.json", "metrics.jsonl")
_MASK_FOLDERS = ("mask", "masks", "annotation", "annotations", "segmentation", "segmentations")
_IMAGE_FOLDERS = ("images/", "image/", "imgs/", "img/", "tiles/", "patches/", "")
# As '1_mask_2', one of several masks of '1'.
_MASK_ENDING = re.compile(
    r"[ _.-](?:masks?|seg|segmentation|overlay|labels?|label+ed|gt)(?:[ _-]?\d+)?$"
)

# Device and inode: what a file is, whatever it is called.
_Identity: TypeAlias = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class FileListing:
    """All files below a folder.

    Attributes:
      root: the folder.
      images: path of each image by its name: relative to `root`, with '/' on every system. Sorted.
        Some may turn out to be damaged, and a link among them may lead nowhere.
      left_out: why each other file was left out, by its name. Of a folder that is not entered
        (it cannot be read, or a link leads to one that is counted already) its own name.
      problems: for each folder that cannot be read, a line that says why.
    """

    root: Path
    images: Mapping[str, Path]
    left_out: Mapping[str, str]
    problems: tuple[str, ...] = ()

    def check_readable(self) -> None:
        """Raises an `InputError` if there are folders that cannot be read."""
        # Also where single bad images are skipped: a class or a patient may be in there.
        if self.problems:
            more = f"; {len(self.problems) - 1} more such folders" if self.problems[1:] else ""
            raise InputError(
                f"{self.problems[0]}; correct its permissions or move it out of {self.root}{more}"
            )

    def describe(self) -> str:
        """Returns the number of images, and of all that was left out by reason, as a line."""
        return f"{len(self.images)} image(s){describe_left_out(self.left_out.values())}"


def describe_left_out(reasons: Iterable[str]) -> str:
    """Returns how many files were left out for each reason: '; left out: 3 .svs, 1 hidden'."""
    counts = Counter(reasons).most_common()
    return "; left out: " * bool(counts) + ", ".join(f"{n} {reason}" for reason, n in counts)


def list_files(
    root: Path,
    selects: Callable[[str, bool], bool] | None = None,
    suffixes: tuple[str, ...] = IMAGE_SUFFIXES,
) -> FileListing:
    """Finds the images below a folder and says what else is there.

    Args:
      root: the folder.
      selects: whether a name (relative to `root`) counts at all, and whether a folder is entered,
        which its second argument says it is.
      suffixes: lower-case endings of the names of images.

    Raises:
      InputError: the folder itself cannot be read.
    """
    return _Walk(root, selects or (lambda name, is_folder: True), suffixes).listing()


class _Folder(NamedTuple):
    """A folder to enter; the first fields are the order in which that is done."""

    depth: int
    links: int  # in its path, below the root
    name: str
    path: str
    reason: str = ""  # why all files in it are left out


class _Walk:
    """One walk over a folder: the shortest paths first, and at each depth those without links."""

    def __init__(self, root: Path, selects: Callable[[str, bool], bool], suffixes: tuple[str, ...]):
        self._root, self._selects, self._suffixes = root, selects, suffixes
        self._queue = [_Folder(0, 0, "", os.fspath(root))]
        # Folders above the root count as seen: a link back to one would bring in its neighbors.
        above = list(root.resolve().parents)
        self._seen = {identity for path in above if (identity := _identity(path)) is not None}
        # Depth, links, name and path of what looks like an image.
        self._candidates: list[tuple[int, int, str, str]] = []
        self._left_out: dict[str, str] = {}
        self._problems: list[str] = []

    def listing(self) -> FileListing:
        with reading(self._root):
            os.scandir(self._root).close()
        while self._queue:
            self._enter(heapq.heappop(self._queue))
        images = self._distinct_images()
        for name in _find_masks(images):
            self._left_out[name] = MASK
            del images[name]
        return FileListing(
            self._root,
            {name: Path(path) for name, path in sorted(images.items())},
            dict(sorted(self._left_out.items())),
            tuple(self._problems),
        )

    def _enter(self, folder: _Folder) -> None:
        if not folder.reason:
            identity = _identity(folder.path)
            if identity in self._seen:
                # All in it has been found by a shorter path or one with fewer links. A folder
                # itself is gone through all the same, so that each file is accounted for.
                folder = folder._replace(reason=LINK)
                if folder.links:
                    self._left_out[folder.name] = LINK
                    return
            if identity:
                self._seen.add(identity)
        try:
            with os.scandir(folder.path) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            self._left_out[folder.name] = folder.reason or UNREADABLE
            if not folder.reason:
                self._problems.append(f"{folder.path}: cannot be read ({error.strerror or error})")
            return
        names = {entry.name for entry in entries}
        if OUTPUT_MARK in names or names.issuperset(_WORKDIR_FILES):
            folder = folder._replace(reason=folder.reason or OWN_OUTPUT)
        for entry in entries:
            self._add(folder, entry)

    def _add(self, folder: _Folder, entry: os.DirEntry[str]) -> None:
        name = f"{folder.name}/{entry.name}" if folder.name else entry.name
        depth, links = folder.depth + 1, folder.links + entry.is_symlink()
        try:
            is_folder = entry.is_dir(follow_symlinks=not folder.reason)
        except (
            OSError
        ):  # a link that leads through a folder that may not be entered, or in a circle
            is_folder = False
        if not self._selects(name, is_folder):
            return
        reason = folder.reason or _reason_by_name(entry.name, is_folder, self._suffixes)
        # Below what is left out no link is followed: it may lead anywhere, and none of it is used.
        if is_folder and not (reason and entry.is_symlink()):
            heapq.heappush(self._queue, _Folder(depth, links, name, entry.path, reason))
        elif reason:
            self._left_out[name] = reason
        else:
            self._candidates.append((depth, links, name, entry.path))

    def _distinct_images(self) -> dict[str, str]:
        """The path of each candidate by name, but once for each file."""
        images: dict[str, str] = {}
        seen: set[_Identity] = set()
        for _, _, name, path in sorted(self._candidates):
            try:
                status = os.stat(path)
            except OSError:
                images[name] = path  # a broken link is a bad image, which reading it will say
                continue
            identity = status.st_dev, status.st_ino
            if not stat.S_ISREG(status.st_mode):
                self._left_out[name] = SPECIAL
            elif identity in seen:
                self._left_out[name] = LINK
            else:
                images[name] = path
                if status.st_ino:  # which some network drives do not know
                    seen.add(identity)
        return images


def _identity(path: str | Path) -> _Identity | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if status.st_ino else None


def _reason_by_name(name: str, is_folder: bool, suffixes: tuple[str, ...]) -> str:
    """Why a name is left out whatever is behind it; '' for folders and images."""
    lower = name.lower()
    if name.startswith(".") or (is_folder and lower in _HIDDEN_FOLDERS):
        return HIDDEN
    if is_folder:
        return THUMBNAIL if lower in _THUMBNAIL_FOLDERS else ""
    if lower.endswith(suffixes):
        return ""
    suffix = os.path.splitext(lower)[1]
    return suffix if suffix[1:].isalnum() and len(suffix) < 10 else OTHER


def _find_masks(names: Iterable[str]) -> list[str]:
    """The names of another image with '_mask' or the like behind, or in a folder of masks."""
    stems = {name: os.path.splitext(name)[0].lower() for name in names}
    others = set(stems.values())
    return [name for name, stem in stems.items() if not others.isdisjoint(_images_of_mask(stem))]


def _images_of_mask(stem: str) -> Iterator[str]:
    """The stems that the image of a mask may have, if a stem is that of a mask."""
    shorter = [text for text in (_MASK_ENDING.sub("", stem),) if text != stem]
    yield from shorter
    folders = stem.split("/")[:-1]
    for i, folder in enumerate(folders):
        if folder in _MASK_FOLDERS:
            above = "".join(f"{name}/" for name in folders[:i])
            for below in (text.removeprefix(f"{above}{folder}/") for text in (stem, *shorter)):
                yield from (f"{above}{images}{below}" for images in _IMAGE_FOLDERS)


def listing_digest(root: Path, files: Mapping[str, Path]) -> str:
    """Returns a digest of where files are, their names, sizes and times, but not their content."""
    digest = hashlib.sha256(os.fsencode(root.resolve()))
    for name, path in files.items():
        try:
            status = path.stat()
            facts = f"{status.st_size}\0{status.st_mtime_ns}"
        except OSError:  # a file that cannot be read is reported when it is due
            facts = "unreadable"
        digest.update(f"{name}\0{facts}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
