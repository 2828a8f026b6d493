"""What the features of images tell of their patient and their class."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from densenet_flax.evaluation.metrics import feature_space
from densenet_flax.evaluation.metrics.feature_space import measure_features


def draw(patients=12, images=8, channels=20, of_patient=0.0, of_class=0.0):
    """Features to which the patient and the class each add a direction of their own."""
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(patients), images)
    label = patient % 2
    x = rng.normal(size=(len(patient), channels))
    x += of_patient * rng.normal(size=(patients, channels))[patient]
    x += of_class * rng.normal(size=(2, channels))[label]
    return x.astype(np.float32), label, np.array([f"p{i}" for i in patient])


@pytest.mark.parametrize("channels", [20, 200])  # fewer and more than images
def test_axes_and_neighbors_are_those_of_scikit_learn(channels, monkeypatch):
    monkeypatch.setattr(feature_space, "_CHUNK", 40)
    x, label, patient = draw(channels=channels, of_patient=1.0)
    space = measure_features(x, label, patient)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    pca = PCA(2, svd_solver="full").fit(unit)
    axes = pca.transform(unit)
    signs = np.sign((axes * space.coordinates).sum(0))
    np.testing.assert_allclose(space.coordinates, axes * signs, atol=1e-4)
    explained = space.summary["explained_variance"]
    np.testing.assert_allclose(explained, pca.explained_variance_ratio_, rtol=1e-4)
    nearest = NearestNeighbors(n_neighbors=5, metric="cosine").fit(x).kneighbors(x)[1]
    np.testing.assert_array_equal(space.neighbors, nearest[:, 1:])
    assert space.rows.tolist() == list(range(len(x)))
    hits = patient[nearest[:, 1]] == patient
    assert space.summary["patient"]["accuracy"] == pytest.approx(hits.mean())
    distance = cdist(x, x, "cosine") + 9 * (patient[:, None] == patient)
    hits = label[distance.argmin(1)] == label
    assert space.summary["class"]["accuracy"] == pytest.approx(hits.mean())


def test_features_of_noise_are_at_chance_and_others_above():
    noise = measure_features(*draw(patients=40)).summary
    assert noise["patient"]["chance"] == pytest.approx(7 / 159)  # of the images of the class
    assert noise["class"]["chance"] == pytest.approx(19 / 39)  # of the other patients' images
    for name in ("patient", "class"):
        assert abs(noise[name]["accuracy"] - noise[name]["chance"]) < 0.06
    of_patient = measure_features(*draw(patients=40, of_patient=1.5)).summary
    assert of_patient["patient"]["accuracy"] > 0.9 and of_patient["class"]["accuracy"] < 0.7
    # A network that knows the class and nothing more stays at chance for the patient.
    of_class = measure_features(*draw(patients=40, of_class=5.0)).summary
    assert of_class["class"]["accuracy"] > 0.95 and of_class["patient"]["accuracy"] < 0.12


def test_tables_that_have_no_neighbors_to_count(monkeypatch):
    x, label, patient = draw()
    alone = measure_features(x, label, np.arange(len(x))).summary
    assert alone["patient"] == {"accuracy": None, "chance": None, "images": 0}
    assert alone["class"]["images"] == len(x)
    one = measure_features(x, np.zeros(len(x), int), np.repeat("a", len(x))).summary
    assert one["class"]["accuracy"] is None and one["patient"]["accuracy"] == 1
    assert measure_features(x[:2], label[:2], patient[:2]) is None
    assert measure_features(np.where(x > 3, np.nan, x), label, patient) is None
    same = measure_features(np.zeros_like(x), label, patient)  # a network whose features died
    assert np.isfinite(same.coordinates).all()
    assert same.summary["explained_variance"] == [0, 0]
    monkeypatch.setattr(feature_space, "MAX_IMAGES", 10)
    few = measure_features(x, label, patient)
    assert len(few.rows) == few.summary["images"] == 10 and few.rows[[0, -1]].tolist() == [0, 95]
