"""A configuration resolved into an `Experiment`, and the objects built from it."""

import dataclasses
import json

import numpy as np
import pytest

from configs import breakhis, colorectal_histology, folder, keras_recipe, patch_camelyon, quickstart
from densenet_flax import InputError
from densenet_flax.experiments.experiment import (
    EvaluationConfig,
    LossConfig,
    ModelConfig,
    StageConfig,
)
from densenet_flax.experiments.from_config import build_loss, build_model, build_stages, resolve

CONFIGS = (breakhis, colorectal_histology, folder, keras_recipe, patch_camelyon, quickstart)


@pytest.mark.parametrize("module", CONFIGS, ids=lambda module: module.__name__)
def test_every_configuration_resolves_and_so_does_its_json(module):
    config = module.get_config()
    experiment = resolve(config)
    assert experiment.config == config.to_dict()
    from_json = resolve(json.loads(json.dumps(config.to_dict())))
    for name in ("model", "data", "split", "stages", "loss", "evaluation", "batch_size"):
        assert getattr(from_json, name) == getattr(experiment, name)


def test_the_defaults_are_the_recipe():
    config = keras_recipe.get_config()
    experiment = resolve(config)
    assert (experiment.model, experiment.loss) == (ModelConfig(), LossConfig())
    assert experiment.evaluation == EvaluationConfig()
    assert experiment.ordered_stages == {
        "head": StageConfig("head"),
        "finetune": StageConfig("300"),
    }
    least = resolve({key: config.to_dict()[key] for key in ("stage_order", "stages")})
    no_stain = dataclasses.replace(experiment.data, stain={})
    assert least == dataclasses.replace(experiment, config=least.config, data=no_stain)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", -1, "config.seed=-1: expected a whole number of 0 or more"),
        ("batch_size", 0, "config.batch_size=0: expected a whole number of 1 or more"),
        ("batchsize", 8, "config.batchsize: no such key; did you mean 'batch_size'?"),
        ("log_every", 0, "config.log_every=0: expected a number of steps"),
        ("cache", "tape", "config.cache='tape': expected one of 'auto', 'device'"),
        ("sampling", "random", "config.sampling='random': expected one of 'shuffle'"),
        ("ema_decay", 1.0, "config.ema_decay=1.0: expected a number from 0 to below 1"),
        ("label_smoothing", -0.1, "config.label_smoothing=-0.1: expected a number from 0"),
        ("class_weights", "1,-2", "config.class_weights='1,-2': expected 'none', 'balanced'"),
        ("class_weights", "heavy", "config.class_weights='heavy': expected 'none', 'balanced'"),
        ("evaluate", "first", "config.evaluate='first': expected one of 'last', 'best'"),
        ("threshold", "best", "config.threshold: threshold rule is 'best'; expected 'fixed' (0.5)"),
        ("explain", "conv7", "config.explain: unit 'conv7': expected a unit"),
        ("model.name", "resnet50", "config.model.name='resnet50': expected one of 'densenet121'"),
        ("model.dtype", "float16", "config.model.dtype='float16': expected one of 'float32'"),
        ("model.remat", "all", "config.model.remat='all': expected one of"),
        ("model.hidden", (0,), "config.model.hidden=(0,): expected sizes of 1 or more, or ()"),
        ("model.hidden", 256, "config.model.hidden=256: expected a tuple of whole numbers"),
        ("model.dropout", 1.0, "config.model.dropout=1.0: expected a number from 0 to below 1"),
        ("model.bn_momentum", 1.0, "config.model.bn_momentum=1.0: expected a number from 0"),
        (
            "model.implementation",
            "xla",
            "config.model.implementation='xla': expected one of 'auto'",
        ),
        ("model.drop_out", 0.1, "config.model.drop_out: no such key; did you mean 'dropout'?"),
        ("stage_order", (), "config.stage_order=(): expected at least one stage"),
        ("stage_order", ("a",), "config.stage_order=('a',): no 'a' in config.stages (finetune,"),
        ("stage_order", ("head", "head"), "config.stage_order=('head', 'head'): expected each"),
        ("stages.head.bn_mode", "on", "config.stages.head.bn_mode='on': expected one of 'keras'"),
        ("stages.head.patience", -1, "config.stages.head.patience=-1: expected a number of epochs"),
        ("stages.head.optimizer", "lion", "config.stages.head.optimizer='lion': expected one of"),
        ("stages.head.learning_rate", 0.0, "config.stages.head.learning_rate=0.0: expected a"),
        ("stages.head.duration", "3", "config.stages.head.duration: '3' is no duration"),
        ("stages.head.warmup", "2 weeks", "config.stages.head.warmup: '2 weeks' is no duration"),
        ("stages.head.unfreeze_from", "conv7", "config.stages.head.unfreeze_from='conv7' is no"),
        (
            "stages.head.rate",
            0.1,
            "config.stages.head.rate: no such key; did you mean 'learning_rate",
        ),
    ],
)
def test_a_bad_value_is_named_with_what_was_expected(key, value, message):
    config = keras_recipe.get_config().to_dict()
    *blocks, name = key.split(".")
    block = config
    for part in blocks:
        block = block[part]
    block[name] = value
    with pytest.raises(InputError) as raised:
        resolve(config)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_stages_have_their_length_in_steps_once_the_examples_are_known():
    stages = {
        "head": StageConfig("head", duration="2 epochs", warmup="50%"),
        "rest": StageConfig(300, duration="5 steps", learning_rate=0.1, patience=3),
    }
    model = build_model(ModelConfig(hidden=(8,)), 3)
    assert (model.num_classes, model.hidden) == (3, (8,))
    head, rest = build_stages(stages, model, examples=10, batch_size=4)
    assert (head.name, head.steps, head.optimizer.warmup) == ("head", 6, 3)
    assert (rest.name, rest.steps, rest.optimizer.learning_rate, rest.patience) == (
        "rest",
        5,
        0.1,
        3,
    )
    assert rest.frontier.cut == "conv4_block23"


def test_the_implementation_of_the_network():
    assert build_model(ModelConfig()).implementation is None
    assert build_model(ModelConfig(implementation="fused")).implementation == "fused"


def test_class_weights_of_the_loss():
    labels = np.array([0, 0, 0, 1])
    assert build_loss(LossConfig(0.1), labels).class_weights == ()
    assert build_loss(LossConfig(class_weights="balanced"), labels).class_weights == (2 / 3, 2)
    assert build_loss(LossConfig(class_weights="1, 0.5"), labels).class_weights == (1, 0.5)
    with pytest.raises(InputError, match=r"config\.class_weights='1,2,3': .* 2 numbers"):
        build_loss(LossConfig(class_weights="1,2,3"), labels)
