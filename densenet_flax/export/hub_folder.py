"""Writes a folder for the Hugging Face Hub: weights that timm reads, their metadata, and a card."""

import itertools
import json
import os
import re
import tempfile
from pathlib import Path

import jax
import numpy as np
from absl import logging
from markupsafe import Markup

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import JsonDict, Variables
from densenet_flax.evaluation.report.model_card import card_body, index_results
from densenet_flax.evaluation.report.rendering import render
from densenet_flax.inference.ensemble import Ensemble
from densenet_flax.inference.load import load_classifier
from densenet_flax.storage.atomic import is_incomplete, replace_files
from densenet_flax.storage.json_files import read_json_object
from densenet_flax.storage.locks import locked
from densenet_flax.storage.workdir import Workdir
from densenet_flax.weights.conversion import check_written
from densenet_flax.weights.hub_names import PREFIX, HubName
from densenet_flax.weights.inference_settings import StoredOperatingPoint
from densenet_flax.weights.info import WeightsInfo
from densenet_flax.weights.save import export_torch, save_weights, torch_fault
from densenet_flax.weights.torch_names import INFO_KEY, TIMM_CONFIG

_WEIGHTS, _CARD = "model.safetensors", "README.md"
# Of the identifiers that the Hub knows, those of weights and their data.
_LICENSES = (
    *("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "unlicense", "wtfpl"),
    *("cc", "cc0-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0"),
    *("cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0"),
    *("cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "pddl"),
    *("gpl", "gpl-2.0", "gpl-3.0", "agpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "mpl-2.0"),
    *("openrail", "odbl", "odc-by", "artistic-2.0", "epl-2.0", "ecl-2.0", "zlib"),
)


def export_for_hub(network: str, output: str | Path, *, overwrite: bool = False) -> Path:
    """Writes a trained classifier as a folder that can be pushed to the Hugging Face Hub.

    `model.safetensors` and `config.json` are in timm's form, and `README.md` is a model card with
    the metrics of the run's evaluation. Threshold, temperature and all other settings are in
    `model.safetensors`: `load_classifier` of the folder, or of its name on the Hub, predicts as
    before. A network that timm cannot compute is written in this package's own form, and a line
    says so.

    Args:
      network: a work directory or a weights file, as for `load_classifier`.
      output: the folder to write; a clone of an empty repository may be it.
      overwrite: whether to replace an export that the folder holds.

    Returns:
      The folder.

    Raises:
      InputError: there is no network, or it is an ensemble; or the folder holds something else or
        cannot be written. The folder is then unchanged.
    """
    folder = Path(output).expanduser()
    if os.path.lexists(folder) and not folder.is_dir():
        raise InputError(f"{folder}: is a file; choose another folder")
    in_use = "another process is exporting into it; wait for it, or choose another folder"
    with locked(folder, in_use, file=""):
        _check_folder(folder, overwrite)
        classifier = load_classifier(network)
        if isinstance(classifier, Ensemble):
            raise InputError(
                f"{network}: an ensemble, and a repository of the Hub holds one network; export "
                "its members, or push the folder of the ensemble as it is"
            )
        info = classifier.info
        fault = torch_fault(info)
        contents = _weights(classifier.variables, info, fault)
        card = _card(info, _evaluation(network, info), fault)
        replace_files(folder, {**contents, _CARD: card})
    if fault:
        logging.warning("timm cannot load it: %s; it is in the form of densenet_flax alone", fault)
    logging.info("%s: %.1f MB", folder / _WEIGHTS, len(contents[_WEIGHTS]) / 1e6)
    logging.info("what the card says: %s", folder / _CARD)
    logging.info("to publish it: hf upload OWNER/NAME %s", folder)
    return folder


def _check_folder(folder: Path, overwrite: bool) -> None:
    """Rejects a folder that holds anything but an export, before the network is loaded."""
    # A clone of a repository has '.git' and '.gitattributes'.
    names = [p.name for p in folder.iterdir() if not (p.name.startswith(".") or is_incomplete(p))]
    if not names:
        return
    config = read_json_object(folder / TIMM_CONFIG, "") if TIMM_CONFIG in names else {}
    if INFO_KEY not in config:
        raise InputError(
            f"{folder}: holds other files than an export for the Hub; choose another folder"
        )
    if not overwrite:
        raise InputError(
            f"{folder}: holds an export; choose another folder, or replace it with --overwrite"
        )


def _weights(variables: Variables, info: WeightsInfo, fault: str) -> dict[str, bytes]:
    """The weights and their configuration, read back by our own reader."""
    variables = jax.tree.map(np.asarray, variables)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, _WEIGHTS)
        if fault:
            save_weights(path, variables, info)
            config = {INFO_KEY: info.to_dict()}
            path.with_name(TIMM_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        else:
            export_torch(path, variables, info)
        check_written(path, variables)
        return {name: Path(folder, name).read_bytes() for name in (_WEIGHTS, TIMM_CONFIG)}


# Of an operating point, what `metrics.json` has as well.
_CHOSEN = ("threshold", "temperature", "rule", "method", "shift", "knots")


def _evaluation(network: str, info: WeightsInfo) -> JsonDict | None:
    """The content of the run's `metrics.json`, if it is about this network; None without one."""
    report = Workdir(network).report / "metrics.json"
    point = info.inference.operating_point
    if point is None or not report.is_file():
        logging.warning("%s: no report beside it, so the card has no results", network)
        return None
    metrics = read_json_object(report, "run --mode=evaluate to write it again")
    try:
        chosen = StoredOperatingPoint.from_dict(metrics["operating_point"])
        is_same = all(getattr(chosen, name) == getattr(point, name) for name in _CHOSEN)
        checkpoint = metrics["run"]["weights"]["checkpoint"]
        if is_same and checkpoint.startswith(f"step {point.step} "):
            return metrics
    except (InputError, LookupError, TypeError, AttributeError):
        pass  # a report of another program
    logging.warning("%s: of another evaluation, so the card has no results", report)
    return None


def _card(info: WeightsInfo, metrics: JsonDict | None, fault: str) -> bytes:
    run = metrics["run"] if metrics else {}
    license = str((run.get("card") or {}).get("license") or info.license)
    identifier = re.sub(r"[\s_]+", "-", license.strip().lower())
    identifier = {"cc0": "cc0-1.0"}.get(identifier, identifier)
    origin = HubName.parse(info.source) if info.source.startswith(PREFIX) else None
    sizes = [info.layout.features, *info.hidden, info.num_classes]
    height, width = info.inference.image_size or (224, 224)
    return render(
        "hub_card.md",
        package="densenet_flax.export",
        info=info,
        title=run.get("title") or info.network,
        layout=info.layout.describe(),
        license=license,
        license_id=identifier if identifier in _LICENSES else "",
        license_name=re.sub(r"[^a-z0-9.]+", "-", license.lower()).strip("-"),
        base_model=origin.repo if origin else "",
        fault=fault,
        height=height,
        width=width,
        linears=list(itertools.pairwise(sizes)),
        point=info.inference.operating_point,
        classes=info.class_names or tuple(f"class {i}" for i in range(info.num_classes)),
        stain=dict(info.inference.stain).get("method", "none"),
        dataset=((run.get("config") or {}).get("data") or {}).get("name", "unknown"),
        results=index_results(metrics) if metrics else [],
        evaluation=Markup(card_body(metrics).decode()) if metrics else "",
    )
