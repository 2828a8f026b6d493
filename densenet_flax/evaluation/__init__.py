"""Evaluates a table of predictions: metrics, intervals, figures and a report.

Nothing here depends on the network that made the predictions: `Predictions` is the only input.
The public names are in `__init__.pyi` and are imported on first use: matplotlib takes a second.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
