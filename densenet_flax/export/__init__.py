"""A trained classifier as files that work without this package.

export_classifier('runs/breakhis', 'exported')   # or main.py --mode=export
"""

from densenet_flax.export.export import FORMATS, ExportResult, export_classifier

__all__ = ["FORMATS", "ExportResult", "export_classifier"]
