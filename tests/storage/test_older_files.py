"""Files that earlier versions wrote: they load, training resumes, and the numbers are the same.

`data/make_files.py` made them and says what they hold. The tolerances allow for another processor
or XLA, whose sums differ in the last digits; where the files were made, all is equal to the bit.
"""

import functools
import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

from densenet_flax import load_classifier
from densenet_flax.experiments.run import train_and_evaluate
from densenet_flax.models.densenet import NETWORKS, DenseNet
from densenet_flax.storage.checkpoint import Checkpoints
from densenet_flax.weights import load_weights
from tests.configs import small_folder

TEXTS = ("kind", "stage")
STOPPED_AT = 11  # of 15 steps
DATA = Path(__file__).parent / "data"
EXPECTED = json.loads((DATA / "expected.json").read_text())
SMALL = functools.partial(DenseNet, blocks=(2, 2, 3, 2), growth_rate=4, stem_features=8)


# As written by 61df2c6, one vector of leaves for each dtype, and until 82c0308, an array a leaf.
@pytest.mark.parametrize("archive", ["stopped", "stopped_leaves"])
def test_a_run_stopped_by_an_earlier_version_resumes_and_ends_the_same(
    archive, tmp_path, monkeypatch
):
    """Stopped in the second stage, which keeps moments of the first and averages the weights."""
    with tarfile.open(DATA / f"{archive}.tar.gz") as file:
        file.extractall(tmp_path / "run", filter="data")
    monkeypatch.setitem(NETWORKS, "small", SMALL)
    config = small_folder.get_config()
    config.data.path = str(DATA / "images")
    config.cache_dir = str(tmp_path / "cache")
    train_and_evaluate(config, str(tmp_path / "run"))

    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    for line, expected in zip(map(json.loads, lines), EXPECTED["metrics"], strict=True):
        line.pop("validation_auc", None)  # which that version did not write
        assert line.keys() == expected.keys()
        assert [line[key] for key in TEXTS] == [expected[key] for key in TEXTS]
        numbers, expected = (
            {k: v for k, v in x.items() if k not in TEXTS} for x in (line, expected)
        )
        assert numbers == pytest.approx(expected, rel=5e-3 if line["step"] > STOPPED_AT else 0)
    variables = Checkpoints(tmp_path / "run" / "checkpoints").restore(15).variables
    expected = load_weights(DATA / "network.safetensors", SMALL(num_classes=2, hidden=(8,)))
    differences = jax.tree.map(lambda a, b: np.abs(a - b).ravel(), variables, expected)
    # Adam may turn a gradient that is all rounding into a step of 1e-3 in either direction.
    assert np.quantile(np.concatenate(jax.tree.leaves(differences)), 0.99) < 2e-5
    rows = (tmp_path / "run" / "report" / "predictions.csv").read_text().splitlines()
    assert rows[0] == EXPECTED["predictions.csv"][0]
    for row, expected in zip(rows[1:], EXPECTED["predictions.csv"][1:], strict=True):
        row, expected = row.split(","), expected.split(",")
        assert row[:6] == expected[:6]
        assert float(row[6]) == pytest.approx(float(expected[6]), abs=2e-3)


def test_a_weights_file_of_an_earlier_version_predicts_the_same():
    files = sorted((DATA / "images").rglob("*.png"))
    prediction = load_classifier(DATA / "network.safetensors").predict(files)
    expected = [EXPECTED["probability"][file.name] for file in files]
    np.testing.assert_allclose(prediction.probability, expected, atol=2e-5)
    assert prediction.class_names == ("a", "b")
