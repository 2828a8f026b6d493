"""The trained network of a work directory, for use after training."""

import json
from pathlib import Path

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import JsonDict, Variables
from densenet_flax.storage.checkpoint import Checkpoints, is_checkpoint
from densenet_flax.storage.workdir import OPERATING_POINT_FILE


def read_model(directory: str | Path, step: int | None = None) -> tuple[Variables, JsonDict]:
    """Reads the network of a training checkpoint.

    Args:
      directory: a work directory, its `checkpoints` folder, or one checkpoint in it.
      step: which; by default the one that was evaluated, or the last one if none was.

    Returns:
      The variables as NumPy arrays, and the fields of the network's `WeightsInfo`, whose `extra`
      holds the operating point if the checkpoint was evaluated.

    Raises:
      InputError: there is no checkpoint.
    """
    directory = Path(directory)
    if is_checkpoint(directory):
        directory, step = directory.parent, int(directory.name)
    if (directory / "checkpoints").is_dir():
        directory = directory / "checkpoints"
    if not any(child.name.isdigit() for child in directory.glob("*")):
        raise InputError(f"{directory}: no checkpoint in it; expected a work directory of main.py")
    operating_point = _read_operating_point(directory.parent / OPERATING_POINT_FILE)
    checkpoints = Checkpoints(directory)
    if step is None:
        step = operating_point.get("step", checkpoints.steps[-1])
    if step not in checkpoints.steps:
        raise InputError(
            f"{directory}: no checkpoint of step {step}, which was evaluated, only of "
            f"{', '.join(map(str, checkpoints.steps))}; run --mode=evaluate again"
        )
    restored = checkpoints.restore(step)
    network = restored.meta["network"]
    if operating_point.get("step") == step:
        extra = {**network.get("extra", {}), "operating_point": operating_point}
        network = {**network, "extra": extra}
    return restored.variables, network


def _read_operating_point(path: Path) -> JsonDict:
    """What the evaluation of a run chose; {} if the run was not evaluated."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); run --mode=evaluate to write it again"
        ) from error
    return content if isinstance(content, dict) else {}
