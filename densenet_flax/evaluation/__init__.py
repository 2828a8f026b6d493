"""From a table of predictions to a judgement: metrics, pictures and one report.

Nothing here knows which network made the predictions; `Predictions` is the only way in.
"""

from densenet_flax.evaluation.metrics import evaluate
from densenet_flax.evaluation.predictions import Predictions, read_csv
from densenet_flax.evaluation.report import verdict, write_report

__all__ = ["Predictions", "evaluate", "read_csv", "verdict", "write_report"]
