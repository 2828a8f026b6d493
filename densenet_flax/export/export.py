"""The folder that an export is: the files, what they are, and images to try them with."""

import dataclasses
import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from densenet_flax.common.errors import InputError
from densenet_flax.data.synthetic.tissue import draw_stain, draw_tile
from densenet_flax.export import onnx_graph, stablehlo
from densenet_flax.export.predict_fn import Outputs, check_activation
from densenet_flax.export.readme import readme
from densenet_flax.inference.classifier import Classifier, load_classifier
from densenet_flax.inference.results import Prediction
from densenet_flax.storage.atomic import replace_files
from densenet_flax.weights import export_weights
from densenet_flax.weights.conversion import read_back

NAMES = {
    "stablehlo": "classifier.stablehlo",
    "onnx": "classifier.onnx",
    "keras": "classifier.weights.h5",
}
FORMATS = tuple(NAMES)
TOLERANCE = 1e-5  # of a probability
_EXAMPLES = 3
_RECORD = "classifier.json"
_IN_KERAS = ("densenet121", "densenet169", "densenet201")


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
      folder: where.
      differences: by format, the largest difference of a probability from this package's own; None
        where nothing is installed that runs the file.
      skipped: by format, why it is not there.
    """

    folder: Path
    differences: Mapping[str, float | None]
    skipped: Mapping[str, str]


def export_classifier(
    network: str,
    output: str | Path,
    *,
    formats: Sequence[str] | None = None,
    overwrite: bool = False,
) -> ExportResult:
    """Writes a trained classifier as files that need nothing of this package.

    The files take prepared images and give probabilities, calibrated probabilities and decisions:
    preprocessing, test-time augmentation, temperature and threshold are inside. Each is run, or
    where nothing is installed that runs it read back, and compared with this package before
    anything is written. They compute in float32.

    Args:
      network: a work directory or a weights file, as for `load_classifier`.
      output: the folder to write.
      formats: some of `FORMATS`; by default all that can be made here.
      overwrite: replace the export that is there.

    Returns:
      What was written, which is also logged.

    Raises:
      InputError: there is no network, a format is unknown or cannot be made, the folder is not
        free or cannot be written, or a file does not give our probabilities; what was in the
        folder is then as it was.
    """
    folder = Path(output).expanduser()
    for name in formats or ():
        if name not in FORMATS:
            raise InputError(f"format {name!r}: expected some of {', '.join(FORMATS)}")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: a file is in the way; choose another folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / _RECORD).is_file():
            raise InputError(f"{folder}: holds other things than an export; choose another folder")
        if not overwrite:
            raise InputError(f"{folder}: holds an export; choose another or say --overwrite")
    if "onnx" in (formats or ()):
        onnx_graph.require()
    classifier = load_classifier(network, dtype="float32")
    check_activation(classifier)
    images = _draw_examples(classifier)
    ours = _judge(classifier, images)
    description = _describe(classifier)

    makers: dict[str, Callable[[], bytes]] = {
        "stablehlo": lambda: stablehlo.serialize(classifier),
        "onnx": lambda: onnx_graph.serialize(classifier, description),
        "keras": lambda: _keras(classifier),
    }
    loaders = {"stablehlo": stablehlo.load, "onnx": onnx_graph.load}
    contents: dict[str, bytes] = {}
    differences: dict[str, float | None] = {}
    skipped: dict[str, str] = {}
    for name in formats or FORMATS:
        try:
            data = makers[name]()
        except InputError as error:
            if formats:
                raise
            skipped[name] = str(error)
            continue
        theirs = loaders[name](data) if name in loaders else None
        threshold = classifier.point.threshold
        difference = _compare(name, theirs, images, ours, threshold) if theirs else None
        contents[NAMES[name]], differences[name] = data, difference
    files = {
        file: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for file, data in contents.items()
    }
    checked = {NAMES[name]: value for name, value in differences.items()}
    record = {**description, "files": files, "largest_difference": checked}
    contents["examples.npz"] = _examples_file(images, ours)
    contents[_RECORD] = (json.dumps(record, indent=2) + "\n").encode()
    contents["README.md"] = readme(record).encode()
    replace_files(folder, contents)
    for file in set(NAMES.values()) - contents.keys():
        (folder / file).unlink(missing_ok=True)  # of an earlier network
    _log(folder, contents, differences, skipped)
    return ExportResult(folder, differences, skipped)


def _log(folder, contents, differences, skipped) -> None:
    for name, difference in differences.items():
        size = len(contents[NAMES[name]]) / 1e6
        said = "read back: every number the same" if name == "keras" else "not run: see its README"
        if difference is not None:
            said = f"largest difference from this package {difference:.1e}"
        logging.info("%s: %.1f MB, %s", folder / NAMES[name], size, said)
    for name, reason in skipped.items():
        logging.warning("%s is left out: %s", NAMES[name], reason)
    logging.info("How to use them: %s", folder / "README.md")


def _keras(classifier: Classifier) -> bytes:
    """A file that Keras loads, read back by our own reader."""
    info = classifier.info
    if info.network not in _IN_KERAS:
        raise InputError(f"keras.applications has only {', '.join(_IN_KERAS)}")
    variables = jax.tree.map(np.asarray, classifier.variables)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / NAMES["keras"]
        export_weights(path, variables, info)
        read_back(path, variables)
        return path.read_bytes()


def _compare(
    name: str,
    theirs: Callable[[np.ndarray], Outputs],
    images: np.ndarray,
    ours: Prediction,
    threshold: float,
) -> float:
    """Runs a file on all images and on one; gives the largest difference of a probability.

    Raises:
      InputError: it is too large, or a decision is another.
    """
    largest = 0.0
    for some in (slice(None), slice(1)):
        found = theirs(images[some])
        for key in ("probability", "calibrated"):
            difference = np.abs(found[key] - getattr(ours, key)[some]).max()
            largest = max(largest, float(np.nan_to_num(difference, nan=np.inf)))
        agree = found["decision"] == ours.label[some]
        if largest > TOLERANCE or not agree[_is_clear(ours, threshold)[some]].all():
            raise InputError(
                f"{name}: differs by {largest:.1e} from this package (at most {TOLERANCE:.0e}); "
                "nothing was written; please report it with the versions of jax and onnx"
            )
    return largest


def _is_clear(ours: Prediction, threshold: float) -> np.ndarray:
    """Whether each decision stands, bool [N], whatever the last digits of the probabilities are."""
    if len(ours.class_names) == 2:
        margin = np.abs(ours.probability[:, 1] - threshold)
    else:
        second, first = np.sort(ours.probability, axis=1)[:, -2:].T
        margin = first - second
    return margin > TOLERANCE


def _draw_examples(classifier: Classifier) -> np.ndarray:
    """Drawn tiles of both kinds, uint8 [N, height, width, 3]."""
    rng = np.random.default_rng(0)
    size = classifier.image_size[::-1]
    return np.stack([draw_tile(rng, i % 2, draw_stain(rng), size)[0] for i in range(_EXAMPLES)])


def _judge(classifier: Classifier, images: np.ndarray) -> Prediction:
    """What this package says of prepared images."""
    step = classifier.images_at_a_time
    parts = [classifier.forward(images[i : i + step]) for i in range(0, len(images), step)]
    return classifier.decide(np.concatenate([part.probability for part in parts]))


def _examples_file(images: np.ndarray, ours: Prediction) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(
        file,
        images=images,
        probability=ours.probability.astype(np.float32),
        calibrated=ours.calibrated.astype(np.float32),
        decision=ours.label.astype(np.int32),
    )
    return file.getvalue()


def _describe(classifier: Classifier) -> dict[str, Any]:
    """What one must know of the classifier, in JSON's types."""
    info, point = classifier.info, classifier.point.to_dict()
    return {
        "class_names": list(classifier.class_names),
        "image_size": list(classifier.image_size),
        "network": info.network,
        "layout": info.layout.describe(),
        "head": {
            "hidden": list(info.hidden),
            "outputs": info.num_classes,
            "activation": info.activation,
        },
        "preprocessing": info.preprocessing,
        "test_time_augmentation": classifier.tta,
        "operating_point": point,
        "stain": dict(info.inference.stain),
        "weights": {"source": info.source, "sha256": info.sha256, "licence": info.license},
        "versions": {name: version(name) for name in ("jax", "flax", "numpy")},
    }
