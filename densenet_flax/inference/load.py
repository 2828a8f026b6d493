"""A classifier from a work directory, a weights file or the folder of an ensemble."""

import dataclasses
import os
from pathlib import Path

from densenet_flax.common.errors import InputError, errors_in
from densenet_flax.common.trees import JsonDict
from densenet_flax.data.images.stain_normalization import resolve_settings
from densenet_flax.inference.classifier import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_IMAGE_SIZE,
    Classifier,
)
from densenet_flax.inference.ensemble import (
    ADVICE,
    Ensemble,
    file_sha256,
    read_members,
)
from densenet_flax.inference.ensemble import FILE as ENSEMBLE_FILE
from densenet_flax.models import frontier
from densenet_flax.storage.json_files import read_json_object
from densenet_flax.storage.workdir import Workdir
from densenet_flax.weights.inference_settings import DTYPES, StoredOperatingPoint
from densenet_flax.weights.info import WeightsInfo
from densenet_flax.weights.load import locate, read_weights

_DEFAULT_BATCH_PIXELS = 32 * 512**2


def load_classifier(
    path: str | os.PathLike[str],
    *,
    image_size: tuple[int, int] | None = None,
    batch_size: int | None = None,
    dtype: str | None = None,
    verify: bool = True,
) -> Classifier:
    """Loads a trained network with its classes, preprocessing, threshold and temperature.

    Args:
      path: a work directory of `main.py`, whose evaluated checkpoint is loaded; the folder of an
        ensemble; or a weights file with a head: one that `python -m densenet_flax.weights convert
        RUN model.safetensors` wrote, or any other that the package reads; or a name on the Hugging
        Face Hub, `hf://owner/name[@revision][/file]`.
      image_size: (height, width); by default that of training, or 224 × 224 if unknown.
      batch_size: images at a time; by default that of training, or 32, and fewer where they are
        larger than 512 × 512. Each call is padded to whole batches, so single images are answered
        sooner with 1.
      dtype: what the network computes in, 'float32' or 'bfloat16'; by default as in training.
      verify: compare a file of Keras or PyTorch with what its framework computes, where that is
        installed, which takes some seconds. What was assumed and compared is logged.

    Raises:
      InputError: there is no network, it has no head, or a size or the dtype cannot be used.
    """
    folder = Path(path).expanduser()
    if (folder / ENSEMBLE_FILE).is_file():
        return _load_ensemble(folder, image_size=image_size, batch_size=batch_size, dtype=dtype)
    path = locate(path)
    if not path.exists():
        raise InputError(
            f"{path}: no such file or directory; expected a work directory or a weights file"
        )
    variables, info = read_weights(path, verify=verify)
    if info.activation == "none":
        raise InputError(
            f"{path}: its outputs are no probabilities (activation 'none'), so that it cannot "
            "classify; convert it with --activation=softmax or sigmoid if they are"
        )
    # The stain settings are checked here, where the message can name the file: `weights` does not
    # know the methods of `data`.
    try:
        resolve_settings(info.inference.stain)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if dtype not in (None, *DTYPES):
        raise InputError(f"dtype={dtype!r}: expected 'float32' or 'bfloat16'")
    if dtype:
        settings = dataclasses.replace(info.inference, dtype=dtype)
        info = dataclasses.replace(info, inference=settings)
    config = Workdir(path).read_config()  # {} for a file
    if batch_size is None:
        batch_size = _default_batch_size(image_size, info)
        in_training = config.get("batch_size")
        if isinstance(in_training, int) and in_training >= 1:
            batch_size = in_training
    cuts = _stage_cuts(config, info)
    return Classifier(variables, info, image_size=image_size, batch_size=batch_size, cuts=cuts)


def _load_ensemble(
    folder: Path,
    *,
    image_size: tuple[int, int] | None,
    batch_size: int | None,
    dtype: str | None,
) -> Ensemble:
    """Loads the classifiers of a folder; arguments and errors are those of `load_classifier`."""
    path = folder / ENSEMBLE_FILE
    content = read_json_object(path, ADVICE)
    with errors_in(f"{path}: "):
        digests, combination = read_members(content)
        stored = content.get("operating_point")
        point = None if stored is None else StoredOperatingPoint.from_dict(stored)
    members = {}
    for name, digest in digests.items():
        file = folder / name
        if not file.is_file():
            raise InputError(f"{file}: missing, and {path} lists it; {ADVICE}")
        if file_sha256(file) != digest:
            raise InputError(f"{file}: is not the file that {path} lists; {ADVICE}")
        members[str(file)] = load_classifier(
            file, image_size=image_size, batch_size=batch_size, dtype=dtype
        )
    return Ensemble(members, combination, point)


def _default_batch_size(image_size: tuple[int, int] | None, info: WeightsInfo) -> int:
    """32 images, or fewer that are large: a file states a size, and not what fits into memory."""
    height, width = image_size or info.inference.image_size or DEFAULT_IMAGE_SIZE
    return max(1, min(DEFAULT_BATCH_SIZE, _DEFAULT_BATCH_PIXELS // max(1, height * width)))


def _stage_cuts(config: JsonDict, info: WeightsInfo) -> list[str]:
    """The units at which the stages of a run cut the network; none without a configuration."""
    try:
        stages = [config["stages"][name] for name in config["stage_order"]]
        frontiers = [
            frontier.resolve(stage["unfreeze_from"], info.blocks, bn_mode=stage["bn_mode"])
            for stage in stages
        ]
    # Cuts change no result, so a damaged configuration is no reason to stop.
    except (LookupError, TypeError, ValueError):
        return []
    return [frontier.cut for frontier in frontiers]
