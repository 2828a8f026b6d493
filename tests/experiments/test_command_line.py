"""Configurations from a command line: keys, values and files as people write them."""

import itertools
import string

import numpy as np
import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.common.overrides import Override, split_overrides
from densenet_flax.experiments import command_line
from densenet_flax.experiments.command_line import apply_overrides, load_config
from densenet_flax.experiments.from_config import resolve

_CONFIG = "configs/folder.py"


def all_keys():
    config = load_config(_CONFIG).to_dict()
    return [*command_line._all_keys(command_line.Experiment, (), config)]


def misspellings(word, rng):
    """One letter less, more, other or exchanged at any place, and other ways to write it."""
    letters = rng.choice(list(string.ascii_lowercase), len(word))
    for i, letter in enumerate(letters):
        rest = word[i + 1 :]
        yield from (word[:i] + rest, word[:i] + letter + rest, word[:i] + letter + word[i:])
        if i:
            yield word[: i - 1] + word[i] + word[i - 1] + rest
    yield from (word.upper(), word.replace("_", ""), word.replace("_", "-"), word + "s")


def test_any_misspelling_of_any_key_is_answered_with_that_key():
    config, keys, rng = load_config(_CONFIG), all_keys(), np.random.default_rng(0)
    known = {".".join(key) for key in keys}
    assert {"stages.finetune.plateau_factor", "data.drawn.size", "data.stain.method"} <= known
    tried = 0
    for key in keys:
        for depth in range(len(key)):
            for word in misspellings(key[depth], rng):
                misspelled = ".".join([*key[:depth], word, *key[depth + 1 :]])
                if misspelled in known or not word or rng.random() > 0.12:  # all take a minute
                    continue
                tried += 1
                with pytest.raises(InputError) as raised:
                    apply_overrides(config, [Override(misspelled, "1")])
                text = str(raised.value)
                assert f"--config.{misspelled}: " in text
                assert ".".join(["config", *key]) in text.replace("?", "").split(), text
    assert tried > 700


@pytest.mark.parametrize(
    ("key", "answer"),
    [
        ("stages.head.lr", "did you mean config.stages.head.learning_rate?"),
        ("learning_rate", "config.stages.finetune.learning_rate or config.stages.head.learning_"),
        ("stages.head.epochs", "did you mean config.stages.head.duration?"),
        ("image_size", "config.data.image_size"),
        ("bs", "did you mean config.batch_size?"),
        ("model.pretrained", "did you mean config.model.weights?"),
        ("qqqq", "the keys are stage_order, stages, seed"),
        ("", "the keys are stage_order"),
        ("seed.x", "config.seed is a value and not a block of keys"),
        ("stages.head", "a block of keys; give a value to one, such as config.stages.head."),
        ("model", "a block of keys; give a value to one, such as config.model.name"),
        ("config.seed", "did you mean config.seed"),
    ],
)
def test_keys_that_others_use_and_blocks(key, answer):
    with pytest.raises(InputError) as raised:
        apply_overrides(load_config(_CONFIG), [Override(key, "1")])
    assert answer in str(raised.value)


@pytest.mark.parametrize(
    ("key", "texts", "value"),
    [
        ("stage_order", ["head,finetune", "('head', 'finetune')", "[head,finetune]"], None),
        ("stage_order", ["head", "('head',)", "(head)", "head,"], ("head",)),
        ("data.image_size", ["64,96", "(64,96)", "[64, 96]", " ( 64 , 96 ) "], (64, 96)),
        ("data.class_names", ["0,1", "('0','1')", "(0,1)", '"0","1"'], ("0", "1")),
        ("data.class_names", ["('a, b', 'c')", "['a, b', 'c']"], ("a, b", "c")),
        ("data.class_names", ["", "()"], ()),
        ("model.hidden", ["256", "(256,)", "256,"], (256,)),
        ("model.hidden", ["", "()"], ()),
        ("augment.zoom_range", ["0.8,1.2", "(.8, 1.2)"], (0.8, 1.2)),
        ("augment.zoom_range", ["0.1", "1e-1"], 0.1),
        ("augment.brightness_range", ["0.8,1.2", "[0.8,1.2]"], (0.8, 1.2)),
        ("stages.head.learning_rate", ["0.001", "1e-3"], 1e-3),
        ("tta", ["true", "True", "1", "yes"], True),
        ("tta", ["false", "0", "No"], False),
        ("seed", ["7", " 7"], 7),
        ("data.stain.mean", ["(1,2,3)", "1, 2, 3"], (1, 2, 3)),
        ("stages.head.unfreeze_from", ["300"], "300"),  # as the configuration has it, a text
        ("model.weights", ["a b,c.h5"], "a b,c.h5"),
    ],
)
def test_values_as_people_write_them(key, texts, value):
    for text in texts:
        result = apply_overrides(load_config(_CONFIG), [Override(key, text)])
        for part in key.split("."):
            result = result[part]
        assert result == (("head", "finetune") if value is None else value), text
        assert type(result) is type(value) or value is None, text


def test_a_key_given_twice_takes_the_last_value():
    overrides = [Override("data.image_size", "64,64"), Override("data.image_size", "(96,96)")]
    assert apply_overrides(load_config(_CONFIG), overrides).data.image_size == (96, 96)


def test_a_text_that_is_no_value_is_refused_with_key_value_and_what_was_expected():
    for key, text in {"batch_size": "many", "tta": "maybe", "data.image_size": "big"}.items():
        with pytest.raises(InputError) as raised:
            resolve(apply_overrides(load_config(_CONFIG), [Override(key, text)]))
        assert str(raised.value).startswith(f"config.{key}=")
        assert text in str(raised.value) and "expected" in str(raised.value)


def test_overrides_are_told_apart_from_other_flags():
    words = ["main.py", "--config=a.py", "--config.seed=1", "-config.seed", "2", "--noconfig.tta"]
    words += [
        "--config.tensorboard",
        "--mode=train",
        "--config.data.path=a=b",
        "--config.seed",
        "-3",
    ]
    others, overrides = split_overrides([*words, "--", "--config.x=1"])
    assert others == ["main.py", "--config=a.py", "--mode=train", "--", "--config.x=1"]
    expected = [("seed", "1"), ("seed", "2"), ("tta", "false"), ("tensorboard", "true")]
    assert overrides == [Override(*o) for o in (*expected, ("data.path", "a=b"), ("seed", "-3"))]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "get_config"),
        ("def get_config(): return 3", "returned 3, not a ConfigDict"),
        ("def get_config(: pass", "SyntaxError"),
        ("import nowhere_to_be_found", "ModuleNotFoundError"),
        ("raise SystemExit(3)", "SystemExit(3)"),
        ("def get_config(): return {}['x']", "KeyError"),
    ],
)
def test_files_that_are_no_configuration(tmp_path, content, words):
    file = tmp_path / "c.py"
    file.write_text(content)
    with pytest.raises(InputError) as raised:
        load_config(str(file))
    assert words in str(raised.value) and str(raised.value).startswith(f"--config={file}: ")
    with pytest.raises(InputError, match="no such file"):
        load_config(str(tmp_path))


def test_every_key_is_reached_and_keeps_its_value():
    """What a value of the configuration looks like in Python is a way to write it."""
    config = load_config(_CONFIG)
    for key in all_keys():
        value = config
        for part in key:
            value = value.get(part) if hasattr(value, "get") else None
        if value is None:
            continue
        changed = apply_overrides(config, [Override(".".join(key), str(value))])
        assert changed.to_dict() == config.to_dict(), key


_OUT_OF_RANGE = {
    "seed": ("-1", "1.5", "9223372036854775808", ""),
    "batch_size": ("0", "-3", "2.5", "nan"),
    "log_every": ("0",),
    "ema_decay": ("1", "-0.1", "nan", "inf"),
    "label_smoothing": ("1", "nan"),
    "class_weights": ("0,0", "nan,1", "inf,1", "-1,2", "1;2", ""),
    "threshold": ("sensitivity>=0", "half", ""),
    "evaluate": ("first",),
    "explain": ("conv9",),
    "cache": ("ram",),
    "sampling": ("",),
    "model.name": ("densenet", "DenseNet201"),
    "model.weights": ("", " "),
    "model.hidden": ("0", "-1", "1.5", "1,x", "999999999999"),
    "model.dropout": ("1", "-0.5", "nan"),
    "model.dtype": ("float16",),
    "data.image_size": ("16,16", "0,0", "64", "64,64,3", "-1,64", "100000,64", "nan,nan"),
    "data.magnification": ("50",),
    "data.workers": ("-1",),
    "data.patient_pattern": ("(",),
    "data.stain.method": ("vahadane",),
    "data.stain.mean": ("1,2", "nan,1,1"),
    "data.drawn.size": ("1,1",),
    "split.test_fraction": ("0", "1", "nan"),
    "split.validation_fraction": ("0", "1", "nan"),
    "split.policy": ("random",),
    "augment.rotation_range": ("-1", "nan", "181"),
    "augment.brightness_range": ("2,1", "nan,1", "1"),
    "augment.mixup": ("-1", "inf", "nan"),
    "augment.views": ("-1",),
}
_STAGE_OUT_OF_RANGE = {
    "learning_rate": ("0", "-1", "nan", "inf", "1e400"),
    "duration": ("3", "-1 epochs", "nan epochs", "5%", "9999999999 epochs", ""),
    "warmup": ("21 epochs", "101%", "1e3 steps", "-1 steps"),
    "weight_decay": ("-1", "nan", "inf"),
    "momentum": ("1", "nan"),
    "clip_norm": ("-1", "nan", "inf"),
    "layer_decay": ("0", "1.1", "nan"),
    "accumulate": ("0",),
    "plateau_factor": ("0", "1", "nan"),
    "plateau_patience": ("0",),
    "patience": ("-1",),
    "optimizer": ("rmsprop",),
    "schedule": ("linear",),
    "bn_mode": ("train",),
    "unfreeze_from": ("conv9", "100000"),
}


@pytest.mark.parametrize(
    ("key", "text"),
    [
        *((key, text) for key, texts in _OUT_OF_RANGE.items() for text in texts),
        *(
            (f"stages.{stage}.{key}", text)
            for stage, (key, texts) in itertools.product(
                ("head", "finetune"), _STAGE_OUT_OF_RANGE.items()
            )
            for text in texts
        ),
    ],
)
def test_a_value_out_of_range_is_refused_before_anything_is_read(key, text):
    overrides = [Override("data.name", "drawn")] if key == "data.magnification" else []
    if key == "data.stain.mean":
        overrides = [Override("data.stain.method", "channel"), Override("data.stain.std", "1,1,1")]
    config = apply_overrides(load_config(_CONFIG), [*overrides, Override(key, text)])
    with pytest.raises(InputError) as raised:
        resolve(config)
    message = str(raised.value)
    assert message.startswith("config.") and key.split(".")[-1] in message
    assert "\n" not in message


def test_words_for_the_weights():
    for text, expected in {
        "None": "random",
        "Random": "random",
        "Imagenet": "imagenet",
        "ImageNet": "imagenet",
        "~/w.h5": "~/w.h5",
    }.items():
        config = apply_overrides(load_config(_CONFIG), [Override("model.weights", text)])
        experiment = resolve(config)
        assert experiment.model.weights == expected == experiment.config["model"]["weights"]
