"""A trained classifier as files that work without this package.

export_classifier('runs/breakhis', 'exported')   # or main.py --mode=export
export_for_hub('runs/breakhis', 'exported')      # … --for=hub
"""

from densenet_flax.export.export import FORMATS, ExportResult, export_classifier
from densenet_flax.export.hub_folder import export_for_hub

__all__ = ["FORMATS", "ExportResult", "export_classifier", "export_for_hub"]
