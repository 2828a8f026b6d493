"""Writes a classifier into a folder: a file for each format, a description, and examples."""

import dataclasses
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Collection, Mapping
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
from absl import logging
from jaxtyping import Bool, Int

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import JsonDict
from densenet_flax.data.synthetic.tissue import draw_stain, draw_tile
from densenet_flax.evaluation.metrics.operating_point import OperatingPoint
from densenet_flax.evaluation.report.rendering import render
from densenet_flax.export import stablehlo, wsinfer
from densenet_flax.export.predict_fn import PredictFn
from densenet_flax.inference.classifier import Classifier, ImageBatch
from densenet_flax.inference.ensemble import Ensemble
from densenet_flax.inference.load import load_classifier
from densenet_flax.inference.results import Prediction
from densenet_flax.storage.atomic import is_incomplete, replace_files
from densenet_flax.storage.locks import locked
from densenet_flax.weights.conversion import check_written
from densenet_flax.weights.save import export_weights

FILE_NAMES = {
    "stablehlo": "classifier.stablehlo",
    "onnx": "classifier.onnx",
    "keras": "classifier.weights.h5",
    "wsinfer": f"wsinfer/{wsinfer.NETWORK_FILE}",  # in a folder, which is what WSInfer reads
}
FORMATS = tuple(FILE_NAMES)
# WSInfer's folder is only for networks whose tiles are square and of known size.
DEFAULT_FORMATS = ("stablehlo", "onnx", "keras")
_WSINFER_CONFIG = f"wsinfer/{wsinfer.CONFIG_FILE}"
TOLERANCE = 1e-5  # largest difference of a probability from this package's
_DESCRIPTION = "classifier.json"
_NUM_EXAMPLES = 3
_KERAS_NETWORKS = ("densenet121", "densenet169", "densenet201")


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """What was exported.

    Attributes:
      folder: the folder that was written.
      differences: of each format written, the largest difference of a probability from this
        package's; None where nothing is installed that runs the file.
      skipped: of each other format, why it was not written.
    """

    folder: Path
    differences: Mapping[str, float | None]
    skipped: Mapping[str, str]


def export_classifier(
    network: str,
    output: str | Path,
    *,
    formats: Collection[str] | None = None,
    overwrite: bool = False,
) -> ExportResult:
    """Writes a trained classifier as files that work without this package; logs the result.

    The files take prepared images and return probabilities, calibrated probabilities and decisions:
    they include preprocessing, test-time augmentation, temperature and threshold, and compute in
    float32. Before anything is written, each file is run and compared with this package; where
    nothing is installed that runs it, it is at least read back.

    Args:
      network: a work directory or a weights file, as for `load_classifier`.
      output: the folder to write.
      formats: those of `FORMATS` to write; by default all of `DEFAULT_FORMATS` that can be written
        here.
      overwrite: whether to replace an export that the folder holds.

    Raises:
      InputError: there is no network; a format is unknown or cannot be written; the folder holds
        something else or cannot be written; or a file does not compute our probabilities. The
        folder is then unchanged.
    """
    folder = Path(output).expanduser()
    in_use = "another process is exporting into it; wait for it, or choose another folder"
    if os.path.lexists(folder) and not folder.is_dir():
        raise InputError(f"{folder}: is a file; choose another folder")
    with locked(folder, in_use, file=""):
        return _export(network, folder, formats, overwrite)


def _export(
    network: str, folder: Path, formats: Collection[str] | None, overwrite: bool
) -> ExportResult:
    _check_request(folder, formats or (), overwrite)
    classifier = load_classifier(network, dtype="float32")
    description = _describe(classifier)
    images = _draw_examples(classifier.image_size)
    expected = _predict(classifier, images)

    contents: dict[str, bytes] = {}
    differences: dict[str, float | None] = {}
    skipped: dict[str, str] = {}
    for name in formats or DEFAULT_FORMATS:
        try:
            written, exported = _serialize(name, classifier, description)
        except InputError as error:
            if formats:  # it was asked for by name
                raise
            skipped[name] = str(error)
            continue
        contents |= written
        differences[name] = None
        if exported:
            point = classifier.operating_point
            differences[name] = _compare(name, exported, images, expected, point)

    if _WSINFER_CONFIG in contents:
        description["wsinfer"] = wsinfer.explain(classifier)
    # The ONNX file holds the description without these, which say something about it.
    description["files"] = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in contents.items()
    }
    description["largest_difference"] = {FILE_NAMES[k]: v for k, v in differences.items()}
    files = {
        **contents,
        "examples.npz": _examples_file(images, expected),
        _DESCRIPTION: (json.dumps(description, indent=2) + "\n").encode(),
        "README.md": _render_readme(description),
    }
    replace_files(folder, files)
    # Formats of an earlier export: their weights may be those of another network.
    for name in {*FILE_NAMES.values(), _WSINFER_CONFIG} - contents.keys():
        (folder / name).unlink(missing_ok=True)
    result = ExportResult(folder, differences, skipped)
    _log(result)
    return result


def _check_request(folder: Path, formats: Collection[str], overwrite: bool) -> None:
    """Rejects what would fail, before the network is loaded and compiled."""
    for name in formats:
        if name not in FORMATS:
            raise InputError(f"format {name!r}: expected one of {', '.join(FORMATS)}")
    if "onnx" in formats:
        _require_onnx()
    if not all(map(is_incomplete, folder.iterdir())):
        if not (folder / _DESCRIPTION).is_file():
            raise InputError(f"{folder}: holds other files than an export; choose another folder")
        if not overwrite:
            raise InputError(
                f"{folder}: holds an export; choose another folder, or replace it with --overwrite"
            )


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401  # by `onnx_graph`
    except ImportError as error:
        raise InputError(
            "ONNX files need the package onnx; install it: pip install onnx onnxruntime"
        ) from error


def _serialize(
    name: str, classifier: Classifier, description: JsonDict
) -> tuple[dict[str, bytes], PredictFn | None]:
    """The files of a format, and their function; None where it cannot run or has weights alone."""
    if name == "wsinfer":
        files = wsinfer.serialize(classifier)
        inside = {f"wsinfer/{name}": data for name, data in files.items()}
        return inside, wsinfer.load(files)
    if name == "stablehlo":
        data = stablehlo.serialize(classifier)
        return {FILE_NAMES[name]: data}, stablehlo.load(data)
    if name == "onnx":
        _require_onnx()
        from densenet_flax.export import onnx_graph  # here, because onnx is optional

        data = onnx_graph.serialize(classifier, description)
        return {FILE_NAMES[name]: data}, onnx_graph.load(data)
    return {FILE_NAMES["keras"]: _keras_weights(classifier)}, None


def _keras_weights(classifier: Classifier) -> bytes:
    """A file that Keras loads, read back by our own reader."""
    if isinstance(classifier, Ensemble):
        raise InputError("a Keras file holds one network, and this is an ensemble")
    if classifier.info.network not in _KERAS_NETWORKS:
        raise InputError(f"keras.applications has only {', '.join(_KERAS_NETWORKS)}")
    variables = jax.tree.map(np.asarray, classifier.variables)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE_NAMES["keras"]
        # Keras need not be installed: our writer made the file, and our reader checks it.
        export_weights(path, variables, classifier.info)
        check_written(path, variables)
        return path.read_bytes()


def _compare(
    name: str,
    exported: PredictFn,
    images: ImageBatch,
    expected: Prediction,
    point: OperatingPoint,
) -> float:
    """Returns the largest difference of a probability; InputError if it or a decision is wrong."""
    is_clear = _is_clear(expected, point.threshold)
    calibrated = expected.calibrated, expected.calibrated
    if point.knots:  # at a step, differences of the probability grow as much as it is steep
        lowest, highest = (
            point.calibrate(expected.probability[:, 1] + shift) for shift in (-TOLERANCE, TOLERANCE)
        )
        calibrated = (
            np.stack([1 - highest, lowest], axis=1),
            np.stack([1 - lowest, highest], axis=1),
        )
    largest = 0.0
    for rows in (slice(None), slice(1)):  # two batch sizes: the file has to take any
        outputs = exported(images[rows])
        # WSInfer's file has calibrated probabilities alone.
        own = outputs.get("probability", expected.probability[rows])
        for values, lower, upper in (
            (own, expected.probability, expected.probability),
            (outputs["calibrated"], *calibrated),
        ):
            outside = np.maximum(lower[rows] - np.asarray(values), values - upper[rows])
            difference = np.maximum(outside, 0).max()
            largest = max(largest, float(np.nan_to_num(difference, nan=np.inf)))
        decision = _decision(expected)[rows]
        same_decision = np.asarray(outputs.get("decision", decision)) == decision
        if largest > TOLERANCE or not same_decision[is_clear[rows]].all():
            raise InputError(
                f"{name}: differs by {largest:.1e} from this package (at most {TOLERANCE:.0e}); "
                "nothing was written; please report it with the versions of jax and onnx"
            )
    return largest


def _decision(expected: Prediction) -> Int[np.ndarray, "N *classes"]:
    """As files return it: the class, or of independent classes 1 for each that is present."""
    decision = expected.label if expected.present is None else expected.present
    return decision.astype(np.int32)


def _is_clear(expected: Prediction, threshold: float) -> Bool[np.ndarray, "N *classes"]:
    """Whether each decision holds for all probabilities within the tolerance."""
    if expected.present is not None:
        return np.abs(expected.probability - 0.5) > TOLERANCE
    if len(expected.class_names) == 2:
        return np.abs(expected.probability[:, 1] - threshold) > TOLERANCE
    second, first = np.sort(expected.probability, axis=1)[:, -2:].T
    return first - second > TOLERANCE


def _draw_examples(size: tuple[int, int]) -> ImageBatch:
    """Synthetic tiles of both classes, of (height, width)."""
    rng = np.random.default_rng(0)
    tiles = (draw_tile(rng, i % 2, draw_stain(rng), size[::-1]) for i in range(_NUM_EXAMPLES))
    return np.stack([image for image, _ in tiles])


def _predict(classifier: Classifier, images: ImageBatch) -> Prediction:
    """The classifier's own prediction of prepared images."""
    size = classifier.images_per_batch
    outputs = [classifier.forward(images[i : i + size]) for i in range(0, len(images), size)]
    return classifier.decide(np.concatenate([output.probability for output in outputs]))


def _examples_file(images: ImageBatch, expected: Prediction) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        images=images,
        probability=expected.probability.astype(np.float32),
        calibrated=expected.calibrated.astype(np.float32),
        decision=_decision(expected),
    )
    return buffer.getvalue()


def _describe(classifier: Classifier) -> JsonDict:
    """The classes, the network, how to prepare its input and how its outputs were chosen."""
    info, members = classifier.info, {}
    if isinstance(classifier, Ensemble):
        networks = [member.info.network for member in classifier.members]
        members["ensemble"] = {**dataclasses.asdict(classifier.combination), "networks": networks}
    return {
        **members,
        "class_names": list(classifier.class_names),
        "image_size": list(classifier.image_size),
        "network": info.network,
        "layout": info.layout.describe(),
        "head": {
            "hidden": list(info.hidden),
            "outputs": info.num_classes,
            "activation": "sigmoid" if info.num_classes == 1 else info.activation,
        },
        "preprocessing": info.preprocessing,
        "test_time_augmentation": classifier.tta,
        "operating_point": classifier.operating_point.to_dict(),
        "stain": dict(info.inference.stain),
        "weights": {"source": info.source, "sha256": info.sha256, "licence": info.license},
        "versions": {name: version(name) for name in ("jax", "flax", "numpy")},
    }


def _render_readme(description: JsonDict) -> bytes:
    """Renders the README of a folder from what `_describe` returned and the `files` by name."""
    height, width = description["image_size"]
    return render(
        "README.md", package="densenet_flax.export", **description, height=height, width=width
    )


def _log(result: ExportResult) -> None:
    for name, difference in result.differences.items():
        path = result.folder / FILE_NAMES[name]
        if difference is not None:
            check = f"largest difference from this package {difference:.1e}"
        elif name == "keras":
            check = "read back: all values identical"
        else:
            check = "not run: onnxruntime is not installed"
        logging.info("%s: %.1f MB, %s", path, path.stat().st_size / 1e6, check)
    for name, reason in result.skipped.items():
        logging.warning("%s: skipped: %s", FILE_NAMES[name], reason)
    logging.info("How to use the files: %s", result.folder / "README.md")
