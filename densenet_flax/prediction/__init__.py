"""Image files in, a table out: what `main.py --mode=predict` does."""

from densenet_flax.prediction.found import Found, find_images, patient_of
from densenet_flax.prediction.many import Summary, predict, predict_files
from densenet_flax.prediction.wanted import Wanted

__all__ = [
    "Found",
    "Summary",
    "Wanted",
    "find_images",
    "patient_of",
    "predict",
    "predict_files",
]
