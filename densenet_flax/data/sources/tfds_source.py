"""Any image-classification data set of TFDS by name; images stay encoded."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import logging

from densenet_flax.common.errors import InputError
from densenet_flax.data.data_config import DataConfig
from densenet_flax.data.dataset import Provenance
from densenet_flax.data.images.array_cache import ImageOptions
from densenet_flax.data.images.image_table import ImageTable
from densenet_flax.data.images.stream import Row
from densenet_flax.data.sources import patients, tfds_files
from densenet_flax.data.sources.files import listing_digest
from densenet_flax.data.sources.source import Annotations, FileSource

# Other names that data sets have for the splits.
_SPLITS = {"valid": "validation", "val": "validation"}


class TfdsSource(FileSource):
    """The examples of all splits of a TFDS data set."""

    def __init__(self, config: DataConfig, cache: Path, options: ImageOptions):
        """Opens the data set, and lets TFDS prepare it if that was not done before.

        Raises:
          InputError: there is no such data set, it cannot be prepared or read, or it is not one of
            images and classes.
        """
        import tensorflow_datasets as tfds

        # Such as 'colorectal_histology/1.0.0'.
        self._name = name = config.name.removeprefix("tfds:")
        builder = _open_builder(name, config.path)
        features = builder.info.features
        image_key = _find_feature(name, features, tfds.features.Image, "image")
        self._label_key = _find_feature(name, features, tfds.features.ClassLabel, "label")
        self._patient_key = config.patient_key
        if self._patient_key and self._patient_key not in features:
            raise InputError(
                f"data.patient_key={self._patient_key!r}: {name} has {', '.join(features)}"
            )
        self.class_names = tuple(features[self._label_key].names)
        # All splits are one data set, as most are split again by patient; `split.policy='given'`
        # goes back to the splits that TFDS has.
        self._records: dict[str, Sequence[tfds_files.Record]] = {}
        for split in sorted(builder.info.splits):
            try:
                self._records[split] = tfds_files.open_split(builder, split, image_key)
            except (NotImplementedError, ValueError, ImportError) as error:
                reason = str(error).partition("\n")[0]
                raise InputError(
                    f"{name}: cannot be read at random ({reason}); prepare it again with "
                    "file_format='array_record'"
                ) from error
        folder = Path(builder.data_path)
        self.read = functools.partial(tfds_files.read_record_image, str(folder), image_key)
        # The key of the patients is in the name as well, because the table keeps their column.
        key = listing_digest(folder, {path.name: path for path in sorted(folder.iterdir())})[:20]
        folder = cache / "tfds" / f"{key}-{self._patient_key or 'nobody'}"
        self.array_folder = options.array_folder(options.cache_folder(folder))

    def rows(self) -> list[Row]:
        """Lists the images in the order of splits and records."""
        rows = []
        for split, records in self._records.items():
            # By number: a data source promises `len` and indexing, not iteration.
            for number in range(len(records)):
                with tfds_files.read_errors(f"tfds:{self._name}"):
                    record = records[number]
                row = {
                    "file": f"{split}/{number:07d}",
                    "source": split,
                    "number": number,
                    "label": int(record[self._label_key]),
                    "split": _SPLITS.get(split, split),
                }
                if self._patient_key:
                    patient = record[self._patient_key]
                    is_text = isinstance(patient, bytes)
                    row["patient"] = patient.decode() if is_text else str(patient)
                rows.append(row)
        return rows

    def annotate(self, table: ImageTable) -> Annotations:
        """Takes labels, patients and splits from the table."""
        columns = {name: table[name] for name in ("patient", "split") if name in table.columns}
        if not {"train", "test"} <= set(columns["split"]):
            del columns["split"]  # a single split with everything does not say what to test on
        annotations = Annotations.from_columns(table["label"], table["file"], columns)
        provenance = Provenance(f"feature {self._label_key!r}")
        if "patient" in columns:
            provenance = dataclasses.replace(
                provenance,
                patients_from=f"feature {self._patient_key!r}",
                patient_source=patients.TABLE,
            )
        return dataclasses.replace(annotations, provenance=provenance)


def _open_builder(name: str, data_dir: str) -> Any:
    import tensorflow_datasets as tfds

    folder = str(Path(data_dir).expanduser()) if data_dir else None
    try:
        builder = tfds.builder(name, data_dir=folder)
        if not builder.data_path.exists():
            # The default format, TFRecord, can be read at random only with TensorFlow.
            builder = tfds.builder(name, data_dir=folder, file_format="array_record")
            logging.info("Preparing %s with TFDS; this is done once", name)
            with tfds_files.quiet_unless_terminal(), tfds_files.local_files():
                builder.download_and_prepare()
        return builder
    except InputError:
        raise
    except ImportError as error:
        raise InputError(
            f"tfds:{name}: TFDS needs {error.name or error} to prepare it; install that, prepare "
            "it once with file_format='array_record', and it is not needed again"
        ) from error
    except Exception as error:  # TFDS and its downloads document no exceptions
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"data.name='tfds:{name}': TFDS cannot open or prepare it ({reason}); see the names at "
            "https://www.tensorflow.org/datasets/catalog, or prepare it elsewhere and give its "
            "folder as data.path"
        ) from error


def _find_feature(name: str, features: Any, feature_type: type, preferred: str) -> str:
    """Returns the key of the feature of a type: the preferred one, or the only one."""
    keys = [key for key, feature in features.items() if isinstance(feature, feature_type)]
    if preferred in keys:
        return preferred
    if len(keys) != 1:
        raise InputError(
            f"tfds:{name}: expected one feature of type {preferred}, found "
            f"{', '.join(keys) or 'none'} among {', '.join(features)}"
        )
    return keys[0]
