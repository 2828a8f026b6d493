"""The records of any TFDS image-classification data set by name; images stay encoded."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import logging

from densenet_flax.common.errors import InputError
from densenet_flax.data.images.stream import Row
from densenet_flax.data.sources.tfds_local_files import local_files

# How data sets call the side that the split calls so.
_SIDES = {"valid": "validation", "val": "validation"}


@dataclasses.dataclass(frozen=True)
class RecordReader:
    """Reads encoded images of a prepared TFDS data set, also in another process.

    Attributes:
      folder: the prepared data set.
      feature: the one that is the image.
    """

    folder: str
    feature: str

    def __call__(self, row: Row) -> bytes:
        """The encoded image of a row, which names its `number` and, of several, its `source`."""
        source = _source(self.folder, row.get("source", "train"), self.feature)
        return source[row["number"]][self.feature]


@functools.lru_cache(maxsize=16)  # opened once in each process
def _source(folder: str, split: str, feature: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(folder).as_data_source(
            split=split, decoders={feature: tfds.decode.SkipDecoding()}
        )
    except Exception as error:  # TFDS raises whatever it likes
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{folder}: cannot be read ({reason}); prepare it anew") from error


class Records:
    """The examples of all splits of a TFDS data set, images still encoded.

    Attributes:
      key: tells one prepared data set from another.
      class_names: in the order of their labels.
      read: gives the encoded image of a row.
    """

    def __init__(self, name: str, data_dir: str, patient_key: str = ""):
        """Opens the data set, and prepares it if it is not there yet.

        Args:
          name: as for `tfds.builder`, such as 'patch_camelyon' or 'colorectal_histology/1.0.0'.
          data_dir: where TFDS keeps its data; '' for its own place.
          patient_key: the feature that tells whose an image is; '' if there is none.

        Raises:
          InputError: there is no such data set, it cannot be prepared or read, or it is not one of
            images and classes.
        """
        import tensorflow_datasets as tfds

        builder = _open(tfds, name, data_dir)
        features = builder.info.features
        self._image = _only(name, features, tfds.features.Image, "image")
        self._label = _only(name, features, tfds.features.ClassLabel, "label")
        self._patient = patient_key
        if patient_key and patient_key not in features:
            raise InputError(f"data.patient_key={patient_key!r}: {name} has {', '.join(features)}")
        self.class_names = tuple(features[self._label].names)
        self._sources = {}
        decoders = {self._image: tfds.decode.SkipDecoding()}
        for split in sorted(builder.info.splits):
            try:
                self._sources[split] = builder.as_data_source(split=split, decoders=decoders)
            except (NotImplementedError, ValueError, ImportError) as error:
                reason = str(error).partition("\n")[0]
                raise InputError(
                    f"{name}: cannot be read at random ({reason}); prepare it anew with "
                    "file_format='array_record'"
                ) from error
        self.read = RecordReader(str(builder.data_path), self._image)
        self.key = _listing(Path(builder.data_path))

    def rows(self) -> list[Row]:
        """What is known about each image, in the order of splits and records."""
        rows = []
        for split, source in self._sources.items():
            for number in range(len(source)):
                record = source[number]
                row = {
                    "file": f"{split}/{number:07d}",
                    "source": split,
                    "number": number,
                    "label": int(record[self._label]),
                    "split": _SIDES.get(split, split),
                }
                if self._patient:
                    value = record[self._patient]
                    row["patient"] = value.decode() if isinstance(value, bytes) else str(value)
                rows.append(row)
        return rows


def _open(tfds: Any, name: str, data_dir: str) -> Any:
    place = str(Path(data_dir).expanduser()) if data_dir else None
    try:
        builder = tfds.builder(name, data_dir=place)
        if not builder.data_path.exists():
            builder = tfds.builder(name, data_dir=place, file_format="array_record")
            logging.info("Preparing %s with TFDS; this is done once", name)
            with quiet_unless_terminal(tfds), local_files():
                builder.download_and_prepare()
        return builder
    except ImportError as error:
        raise InputError(
            f"tfds:{name}: TFDS needs {error.name or error} to prepare it; install that, prepare "
            "it once with file_format='array_record', and it is not needed again"
        ) from error
    except Exception as error:  # TFDS and its downloads raise whatever they like
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"data.name='tfds:{name}': TFDS cannot open or prepare it ({reason}); see the names at "
            "https://www.tensorflow.org/datasets/catalog, or prepare it elsewhere and give its "
            "folder as data.path"
        ) from error


def _only(name: str, features: Any, kind: type, what: str) -> str:
    found = [key for key, feature in features.items() if isinstance(feature, kind)]
    if what in found:
        return what
    if len(found) != 1:
        raise InputError(
            f"tfds:{name}: expected one feature of type {what}, found "
            f"{', '.join(found) or 'none'} among {', '.join(features)}"
        )
    return found[0]


def _listing(folder: Path) -> str:
    digest = hashlib.sha256(str(folder).encode())
    for path in sorted(folder.iterdir()):
        stat = path.stat()
        digest.update(f"{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def quiet_unless_terminal(tfds: Any) -> Iterator[None]:
    """TFDS draws its bars and prints its lines even into a log file; not so here."""
    if sys.stderr.isatty():
        yield
        return
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
