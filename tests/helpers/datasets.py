"""Small data sets in memory."""

import numpy as np

from densenet_flax.data.breakhis.names import patient_groups
from densenet_flax.data.dataset import Dataset


def make_dataset(patients, images, size=32):
    """`images` tiles of each patient; every second patient is malignant, darker and rougher."""
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(patients) % 2, images).astype(np.int32)
    n = len(label)
    pixels = rng.normal(150, 20, (n, size, size, 3))
    pixels += (label * -40)[:, None, None, None] + label[:, None, None, None] * rng.normal(
        0, 30, (n, size, size, 3)
    )
    case = np.repeat([f"{9000 + i}" for i in range(patients)], images)
    subtype = np.where(label, "ductal_carcinoma", "adenosis")
    return Dataset(
        images=np.clip(pixels, 0, 255).astype(np.uint8),
        labels=label,
        class_names=("benign", "malignant"),
        files=np.array([f"tile-{i:03d}.png" for i in range(n)]),
        groups=patient_groups(subtype, case, case),
        columns={
            "case": case,
            "slide_id": case,
            "subtype": subtype,
            "magnification": np.full(n, 100, np.int32),
            "sequence": np.arange(n, dtype=np.int32),
        },
        name="made for tests",
        fingerprint="0",
    )


def dataset_of_labels(labels, class_names=("no", "yes"), **fields):
    """A data set named 'made' without pixels; `groups` and all else as keywords of `Dataset`."""
    values = {"files": np.array([f"{i:05d}.png" for i in range(len(labels))]), "fingerprint": ""}
    return Dataset(
        images=np.zeros((len(labels), 0, 0, 3), np.uint8),
        labels=np.array(labels, np.int32),
        class_names=class_names,
        name="made",
        **values | fields,
    )
