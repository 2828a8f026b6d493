"""Image files in, a table out: what `main.py --mode=predict` does."""

from densenet_flax.inference.batch.image_files import ImageFile, find_images, patient_of
from densenet_flax.inference.batch.outputs import OutputOptions
from densenet_flax.inference.batch.predict_files import Summary, predict, predict_files

__all__ = [
    "ImageFile",
    "OutputOptions",
    "Summary",
    "find_images",
    "patient_of",
    "predict",
    "predict_files",
]
