"""Which changes of a configuration give a run more epochs, and which make it another run."""

import json

import pytest

from configs import quickstart
from densenet_flax.common.errors import InputError
from densenet_flax.common.overrides import Override
from densenet_flax.experiments.command_line import apply_overrides
from densenet_flax.experiments.extension import extend, find_extensions, read_notes
from densenet_flax.experiments.from_config import build_model, build_stages, resolve
from densenet_flax.storage.workdir import Workdir
from densenet_flax.training.progress import TrainProgress

_IN_HEAD = TrainProgress(stage=0, stage_step=8, step=8)
_IN_FINETUNE = TrainProgress(stage=1, stage_step=6, step=14)

_LONGER = {"stages__finetune__duration": "7 epochs"}
_COSINE = {"stages__finetune__schedule": "cosine"}
_WARMUP = {"stages__finetune__warmup": "5%"}
_PATIENT = {"stages__finetune__patience": "2"}


def _experiment(**overrides):
    """The demo with finetune constant, and other values: dots in keys are written as '__'."""
    start = [Override("stages.finetune.schedule", "constant")]
    texts = [Override(key.replace("__", "."), value) for key, value in overrides.items()]
    return resolve(apply_overrides(quickstart.get_config(), [*start, *texts]))


def _workdir(path, **overrides):
    workdir = Workdir(path)
    path.mkdir(exist_ok=True)
    workdir.write_config(_experiment(**overrides).config)
    return workdir


@pytest.mark.parametrize(
    ("progress", "before", "after", "exact"),
    [
        (_IN_FINETUNE, {}, _LONGER, [True]),
        (_IN_FINETUNE, {}, {"stages__finetune__duration": "6.5epochs"}, [True]),
        (_IN_HEAD, {}, {"stages__head__duration": "9 epochs"}, [True]),
        (_IN_HEAD, {}, {"stages__finetune__duration": "9 epochs"}, [True]),  # has not begun
        (_IN_FINETUNE, _COSINE, _COSINE | _LONGER, [False]),
        (_IN_HEAD, _COSINE, _COSINE | _LONGER, [True]),
        (_IN_FINETUNE, _WARMUP, _WARMUP | _LONGER, [False]),
        (_IN_FINETUNE, _PATIENT, {"stages__finetune__patience": "3"} | _LONGER, [True, True]),
        (_IN_FINETUNE, _PATIENT, {"stages__finetune__patience": "0"}, [True]),
        (_IN_FINETUNE, {}, {"threshold": "youden"}, []),  # decides nothing in training
    ],
)
def test_more_epochs(tmp_path, progress, before, after, exact):
    extensions = find_extensions(_experiment(**after), _workdir(tmp_path, **before), progress)
    assert [extension.exact for extension in extensions] == exact


@pytest.mark.parametrize(
    "after",
    [
        {"stages__finetune__duration": "5 epochs"},
        {"stages__finetune__duration": "1000 steps"},
        {"stages__head__duration": "20 epochs"},  # the stage after it started from its end
        {**_LONGER, "seed": "1"},
        {"stages__finetune__learning_rate": "1"},
        {"stages__finetune__patience": "3"},
        {"stage_order": "finetune"},
    ],
)
def test_another_run(tmp_path, after):
    with pytest.raises(InputError, match="belongs to another configuration"):
        find_extensions(_experiment(**after), _workdir(tmp_path), _IN_FINETUNE)


def _extend(workdir, progress, **overrides):
    experiment = _experiment(**overrides)
    stages = build_stages(
        experiment.ordered_stages, build_model(experiment.model), examples=20, batch_size=10
    )
    extend(experiment, workdir, stages, progress, 2)
    return experiment


def test_an_extension_is_noted_once_and_becomes_the_configuration(tmp_path):
    workdir = _workdir(tmp_path)
    old = (tmp_path / "config.json").read_text()
    experiment = _extend(workdir, _IN_FINETUNE, **_LONGER)
    assert workdir.changes(experiment.config, {}) == {}
    notes = read_notes(workdir)
    assert [(n.step, n.key, n.before, n.after) for n in notes] == [
        (14, "duration", "6 epochs", "7 epochs")
    ]
    (tmp_path / "config.json").write_text(old)  # as after a kill between the two files
    _extend(workdir, _IN_FINETUNE, **_LONGER)
    assert read_notes(workdir) == notes
    workdir.extensions.write_text(json.dumps({"extensions": [{"stage": 3}]}))
    with pytest.raises(InputError, match=r"extensions\.json"):
        read_notes(workdir)


def test_stages_that_cannot_go_on(tmp_path):
    workdir = _workdir(tmp_path, **_PATIENT)
    losses = [{"stage": "finetune", "step": 8 + 2 * i, "validation_loss": i} for i in (1, 2, 3)]
    stopped = TrainProgress(stage=1, stage_step=6, step=14, history=losses)
    longer = {"stages__finetune__duration": "9 epochs"}
    with pytest.raises(InputError, match="patience=2: the stage ended after 3 epochs"):
        _extend(workdir, stopped, **_PATIENT, **longer)
    _extend(workdir, stopped, stages__finetune__patience="0", **longer)
    workdir = _workdir(tmp_path)
    half = [{"stage": "finetune", "step": 13, "validation_loss": 1.0}]
    ended = TrainProgress(stage=1, stage_step=5, step=13, history=half)
    with pytest.raises(InputError, match="ended within an epoch"):
        _extend(workdir, ended, **longer)
