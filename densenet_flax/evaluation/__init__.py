"""From a table of predictions to a judgement: metrics, intervals, pictures and one report.

Nothing here knows which network made the predictions; `Predictions` is the only way in.
"""

import importlib
from typing import Any

_HOME = {
    "OperatingPoint": "metrics.operating_point",
    "Predictions": "predictions",
    "choose_operating_point": "metrics.operating_point",
    "compare": "metrics.comparison",
    "cross_validation_summary": "metrics.folds",
    "evaluate": "metrics.compute",
    "pool": "metrics.folds",
    "read_csv": "predictions_csv",
    "verdict": "report.report",
    "write_report": "report.report",
}


def __getattr__(name: str) -> Any:
    """Imports a name when it is first used: scikit-learn and matplotlib take seconds."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
