"""From a table of predictions to a judgement: metrics, intervals, pictures and one report.

Nothing here knows which network made the predictions; `Predictions` is the only way in.
"""

from densenet_flax.evaluation.comparison import compare
from densenet_flax.evaluation.folds import cross_validation_summary, pool
from densenet_flax.evaluation.intervals import intervals
from densenet_flax.evaluation.metrics import evaluate
from densenet_flax.evaluation.operating_point import OperatingPoint, choose_operating_point
from densenet_flax.evaluation.predictions import Predictions, read_csv
from densenet_flax.evaluation.report import verdict, write_report

__all__ = [
    "OperatingPoint",
    "Predictions",
    "choose_operating_point",
    "compare",
    "cross_validation_summary",
    "evaluate",
    "intervals",
    "pool",
    "read_csv",
    "verdict",
    "write_report",
]
