"""Weights in and out: every DenseNet file in the wild becomes our variables, and goes back.

variables = load_weights('imagenet', model)      # or any supported file
variables, info = read_weights('model.keras')    # the file says which network it is
model = info.build_model()

On the command line: `python -m densenet_flax.weights convert|export|inspect|download`.
"""

from densenet_flax.weights.conversion import Conversion, Inspection, convert, export, inspect
from densenet_flax.weights.inference_settings import InferenceSettings, StoredOperatingPoint
from densenet_flax.weights.info import WeightsInfo
from densenet_flax.weights.load import load_backbone, load_weights, load_with_info, read_weights
from densenet_flax.weights.official import download
from densenet_flax.weights.save import export_weights, save_weights

__all__ = [
    "Conversion",
    "InferenceSettings",
    "Inspection",
    "StoredOperatingPoint",
    "WeightsInfo",
    "convert",
    "download",
    "export",
    "export_weights",
    "inspect",
    "load_backbone",
    "load_weights",
    "load_with_info",
    "read_weights",
    "save_weights",
]
