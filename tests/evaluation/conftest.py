"""Tables small enough to work out by hand, and random ones."""

import numpy as np
import pytest

from densenet_flax.evaluation import Predictions
from densenet_flax.evaluation.report import plotting


def table(**columns):
    """Predictions with the columns that are needed and not given."""
    n = len(columns["label"])
    filled = {
        "file": [f"image{i}.png" for i in range(n)],
        "patient": ["p"] * n,
        "magnification": [40] * n,
    }
    return Predictions(**{**filled, **columns})


@pytest.fixture
def quick_figures(monkeypatch):
    """Skips the encoding of figures, the slowest part: most tests do not need their content."""
    monkeypatch.setattr(plotting, "png", lambda figure: b"\x89PNG\r\n\x1a\n")
    monkeypatch.setattr(plotting, "pdf", lambda figure: b"%PDF-")


@pytest.fixture
def make():
    return table


@pytest.fixture
def hand():
    """Patient a: benign, 2 of 2 right; b: malignant, 1 of 4; c: malignant, 2 of 2."""
    return table(
        patient=["a", "a", "b", "b", "b", "b", "c", "c"],
        subtype=["adenosis"] * 2 + ["ductal_carcinoma"] * 4 + ["papillary_carcinoma"] * 2,
        magnification=[40, 100, 40, 100, 40, 100, 40, 100],
        label=[0, 0, 1, 1, 1, 1, 1, 1],
        probability=[0.1, 0.4, 0.9, 0.2, 0.3, 0.4, 0.6, 0.5],
    )


@pytest.fixture
def random_table():
    def build(seed, n=200):
        rng = np.random.default_rng(seed)
        patient = rng.integers(0, 12, n)
        label = (patient % 3 > 0).astype(int)
        return table(
            patient=[f"p{i}" for i in patient],
            label=label,
            # Rounded, so that some probabilities are tied and some sit on the threshold.
            probability=np.round(np.clip(0.3 + 0.3 * label + rng.normal(0, 0.25, n), 0, 1), 1),
            magnification=rng.choice([40, 100, 200, 400], n),
            subtype=np.where(label == 1, "ductal_carcinoma", "adenosis"),
        )

    return build


CLASSES = ("adenosis", "fibroadenoma", "ductal_carcinoma", "lobular_carcinoma")


@pytest.fixture
def several():
    """Random predictions of four classes; every patient has one class."""

    def build(seed, n=200, patients=14, tag="", spread=1.0):
        rng = np.random.default_rng(seed)
        patient = rng.integers(0, patients, n)
        label = patient % len(CLASSES)
        logits = rng.normal(size=(n, len(CLASSES))) * spread
        logits[np.arange(n), label] += spread
        probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return table(
            file=[f"{tag}image{i}.png" for i in range(n)],
            patient=[f"{tag}p{i}" for i in patient],
            subtype=np.array(CLASSES)[label],
            magnification=rng.choice([40, 100], n),
            label=label,
            probability=probability,
            class_names=CLASSES,
        )

    return build
