"""The trained network of a work directory, for use after training."""

import os
from pathlib import Path

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import JsonDict, Variables
from densenet_flax.storage.checkpoint import (
    Checkpoints,
    DamagedCheckpoint,
    Restored,
    is_checkpoint,
)
from densenet_flax.storage.json_files import read_json_object
from densenet_flax.storage.locks import is_locked
from densenet_flax.storage.workdir import OPERATING_POINT_FILE

_ATTEMPTS = 3  # to read a checkpoint of a run that replaces it meanwhile


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
    operating_point = read_operating_point(directory.parent / OPERATING_POINT_FILE)
    restored = _restore(directory, operating_point.get("step") if step is None else step, step)
    step = restored.step
    network = restored.meta["network"]
    if operating_point.get("step") == step:
        tiles = operating_point.pop("tiles", {})
        extra = {**network.get("extra", {}), **tiles, "operating_point": operating_point}
        network = {**network, "extra": extra}
    return restored.variables, network


def _restore(directory: Path, step: int | None, requested: int | None) -> Restored:
    """Reads the checkpoint of a step, or the last one that can be read."""
    for attempt in range(_ATTEMPTS):
        checkpoints = Checkpoints(directory, read_only=True)
        steps = checkpoints.steps
        try:
            if step is None:
                restored = checkpoints.restore_latest(train=False)
            elif step in steps:
                restored = checkpoints.restore(step, train=False)
            else:
                raise InputError(
                    f"{directory}: no checkpoint of step {step}, which was evaluated, only of "
                    f"{', '.join(map(str, steps)) or 'none'}; run --mode=evaluate again"
                )
        except DamagedCheckpoint as error:
            # A run that goes on meanwhile may have replaced it.
            is_replaced = Checkpoints(directory, read_only=True).steps != steps
            if is_replaced and attempt < _ATTEMPTS - 1:
                continue
            if step is None or requested is not None or is_locked(directory.parent):
                raise
            advice = "put it back, or run --mode=evaluate, which takes another one"
            raise DamagedCheckpoint(f"{error.problem}, and it was evaluated", advice) from error
        if restored is None:
            break
        return restored
    raise InputError(f"{directory}: no complete checkpoint in it; run --mode=train again")


def read_operating_point(path: Path) -> JsonDict:
    """What the evaluation of a run chose; {} if the run was not evaluated."""
    if not os.path.lexists(path):
        return {}
    advice = "run --mode=evaluate to write it again"
    content = read_json_object(path, advice)
    if type(content.get("step")) is not int:
        raise InputError(f"{path}: does not say which checkpoint was evaluated; {advice}")
    if not isinstance(content.get("tiles", {}), dict):
        raise InputError(f"{path}: 'tiles' is not an object of JSON; {advice}")
    return content
