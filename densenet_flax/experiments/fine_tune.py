"""Fine-tuning from Python, for data that a program has at hand; the engine is that of `main.py`.

    run = densenet_flax.fine_tune(X_train, y_train, patients=patients, class_names=("no", "yes"))
    run.evaluate(X_test, y_test, patients=test_patients)

Images are written below the work directory as they enter the network, and all else is
`train_and_evaluate` on them: the same data give the same bits as on the command line.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from absl import logging
from jaxtyping import Int
from ml_collections import ConfigDict

from densenet_flax.common.errors import InputError, Stopped
from densenet_flax.common.trees import JsonDict
from densenet_flax.data.data_config import DATA_NAMES
from densenet_flax.data.loading import image_options
from densenet_flax.data.sources.arrays import check_same_images, remove_subset, write_subset
from densenet_flax.data.sources.image_set import SUBSETS, ImageSet, image_set, number_labels
from densenet_flax.data.sources.tile_table import ColumnSettings
from densenet_flax.experiments.command_line import apply_overrides, as_overrides, load_config
from densenet_flax.experiments.from_config import resolve
from densenet_flax.experiments.run import train_and_evaluate
from densenet_flax.experiments.session import session
from densenet_flax.experiments.trained_run import Run
from densenet_flax.storage.workdir import Workdir

_KEYS_OF_IMAGES = {"data.name": "arrays", "split.policy": "given", "split.group": "patient"}
# Of each subset the images, and the numbers of their classes.
_Subsets: TypeAlias = dict[str, tuple[ImageSet, Int[np.ndarray, "N"]]]


def fine_tune(
    images: Any = None,
    labels: Any = None,
    *,
    validation_data: Any = None,
    patients: Any = None,
    class_names: Sequence[str] = (),
    config: str | os.PathLike[str] | ConfigDict | JsonDict = "keras_recipe",
    overrides: Mapping[str, Any] | None = None,
    workdir: str | os.PathLike[str] | None = None,
    verbose: bool = True,
    **keys: Any,
) -> Run:
    """Trains a DenseNet on images and labels, in the stages of a configuration.

        run = densenet_flax.fine_tune(
            X_train, y_train, patients=patients, validation_data=(X_val, y_val, val_patients),
            class_names=("benign", "malignant"), batch_size=16, model={"name": "densenet121"},
        )

    Args:
      images: uint8 [N, H, W, 3], RGB from 0 to 255, not preprocessed; a list of paths, Pillow
        images or arrays of any size; or a DataFrame with the columns file and label and perhaps
        patient, site and split. Or, without labels, a data set: 'breakhis', 'drawn',
        'tfds:NAME', a folder of tiles; None for the one of the configuration.
      labels: the class of each image, a number from 0 or a name.
      validation_data: (images, labels), (images, labels, patients) or a DataFrame. Without it,
        `split.validation_fraction` of the patients of each class validate.
      patients: whose each of `images` is. Without it no result is claimed for new patients.
      class_names: of the labels 0, 1, …; of two the second is the one that is looked for.
      config: a name or path as of `--config`, or a configuration.
      overrides: other values for keys of the configuration, such as
        {"stages.head.duration": "3 epochs"}; texts are read as on the command line.
      workdir: where the run is kept, to be resumed by the same call or by `main.py`. By default a
        temporary directory, which is removed with the object that is returned.
      verbose: whether to show progress.
      **keys: overrides whose keys have no dots; blocks as dictionaries.

    Raises:
      InputError: what can be corrected, in one line.
      Stopped: Ctrl-C; with `workdir` the same call resumes.
    """
    in_memory = images is not None and not isinstance(images, str | os.PathLike)
    if not in_memory:
        _refuse_beside_data_set(labels, validation_data, patients, class_names)
    if isinstance(config, str | os.PathLike):
        config = load_config(os.fspath(config))
    of_data = as_overrides(_KEYS_OF_IMAGES if in_memory else _keys_of_data_set(images))
    changes = as_overrides({**(overrides or {}), **keys})
    config = apply_overrides(config, [*of_data, *changes], flag="")
    temporary = None
    if workdir is None:
        temporary = tempfile.TemporaryDirectory(prefix="densenet_flax-")
        workdir = Path(temporary.name) / "fine_tuned"  # the title of the report
    directory = Workdir(workdir)
    subsets: _Subsets = {}
    if in_memory:
        if config.data.name != "arrays" or config.data.path:
            raise InputError("data.name, data.path: have no effect with images; leave them out")
        columns = resolve(config).data.columns
        given = {"train": image_set(images, labels, patients, "images", columns)}
        given |= _read_validation_data(validation_data, columns)
        config.data.class_names = tuple(class_names) or config.data.class_names
        subsets = _number(_by_subset(given), config)
        config.data.path = str(directory.images)
    with session(config, verbose=verbose):
        if subsets:
            with directory.lock():
                _keep(directory, subsets, config)
        try:
            train_and_evaluate(config, str(directory.path))
        except Stopped as reason:
            if temporary is None:
                raise
            raise Stopped(f"{reason}, which takes workdir=…: without it nothing is kept") from None
    return Run(directory.path, verbose=verbose, temporary=temporary)


def _refuse_beside_data_set(*arguments: Any) -> None:
    given = [argument for argument in arguments if argument is not None]
    if any(not hasattr(argument, "__len__") or len(argument) for argument in given):
        raise InputError(
            "labels, validation_data, patients and class_names: are for images; a data set by "
            "name, a folder or a configuration states its own"
        )


def _keys_of_data_set(images: str | os.PathLike[str] | None) -> JsonDict:
    """What a name or a folder in place of images says about the configuration."""
    if images is None:
        return {}
    name = os.fspath(images)
    of_patients = {"split.group": "patient", "split.policy": "auto"}
    if Path(name).expanduser().is_dir():
        return {"data.name": "folder", "data.path": name, **of_patients}
    if name.startswith("tfds:"):
        return {"data.name": name, **of_patients}
    if name not in DATA_NAMES or name == "arrays":
        raise InputError(
            f"{name}: no such folder or data set; expected 'breakhis', 'drawn', 'tfds:<name>', a "
            "folder of tiles, or images: an array, or a list of paths or Pillow images"
        )
    return {"data.name": name}


def _read_validation_data(data: Any, columns: ColumnSettings) -> dict[str, ImageSet]:
    if data is None:
        return {}
    if hasattr(data, "columns"):
        return {"validation": image_set(data, None, None, "validation_data", columns)}
    if not isinstance(data, tuple | list) or len(data) not in (2, 3):
        raise InputError(
            "validation_data: expected (images, labels) or (images, labels, patients), or a "
            "DataFrame; without it some of the training patients validate"
        )
    images, labels, patients = (*data, None)[:3]
    return {"validation": image_set(images, labels, patients, "validation_data", columns)}


def _by_subset(given: Mapping[str, ImageSet]) -> dict[str, ImageSet]:
    """Takes the subsets apart that the column `split` of a DataFrame states."""
    if "split" not in given["train"].known:
        return dict(given)
    if "validation" in given:
        raise InputError(
            "validation_data: the images have a column split already; use one of the two, or set "
            "data.columns.split='none'"
        )
    stated = np.array(given["train"].known["split"])
    subsets = {name: given["train"].take(stated == name) for name in np.unique(stated).tolist()}
    if "train" not in subsets:
        raise InputError("images: column split has no images for train")
    return {name: subsets[name] for name in SUBSETS if name in subsets}


def _number(subsets: Mapping[str, ImageSet], config: ConfigDict) -> _Subsets:
    """Also sets the names of the classes in the configuration."""
    labels, config.data.class_names = number_labels(
        list(subsets.values()), config.data.class_names, config.data.similar_names
    )
    files = [
        row["file"] for name, images in subsets.items() for row in images.rows(name, images.labels)
    ]
    (file, count), *_ = Counter(files).most_common(1)
    if count > 1:
        raise InputError(f"{file}: is in two subsets; leave it out of one")
    return dict(zip(subsets, zip(subsets.values(), labels, strict=True), strict=True))


def _keep(directory: Workdir, subsets: _Subsets, config: ConfigDict) -> None:
    """Writes the images below the work directory, or checks that they are those of its run."""
    options, root = image_options(resolve(config).data), Path(config.data.path)
    if directory.has_begun:
        check_same_images(root, subsets, options.bits)
        return
    for name in SUBSETS:
        remove_subset(root, name)
    for name, (images, labels) in subsets.items():
        logging.info("%s: %d images; resized to %d×%d pixels", name, len(images), *options.size)
        write_subset(root, name, images, labels, options)
