"""Configuration blocks as dataclasses."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest
from ml_collections import ConfigDict

from densenet_flax.common.errors import InputError
from densenet_flax.common.settings import INLINE, Settings, choice, setting


@dataclasses.dataclass(frozen=True)
class Rates(Settings):
    rate: float = setting(0.1, "a number above 0", lambda rate: rate > 0)
    decay: float = 0.0


@dataclasses.dataclass(frozen=True)
class Block(Settings):
    name: str
    kind: str = choice("a", ("a", "b"))
    count: int = 1
    on: bool = False
    sizes: tuple[int, ...] = ()
    shape: tuple[int, int] = (1, 1)
    zoom: float | tuple[float, float] = 0.0
    rates: Rates = dataclasses.field(default_factory=Rates, metadata=INLINE)
    inner: Rates = dataclasses.field(default_factory=Rates)
    several: Mapping[str, Rates] = dataclasses.field(default_factory=dict)


def test_values_take_the_types_of_their_fields():
    block = ConfigDict({"name": "x", "sizes": [1, 2], "shape": (3, np.int64(4)), "rate": 2})
    block.zoom = [0.5, 1]
    block.inner = ConfigDict({"rate": 3.0})
    block.several = ConfigDict({"one": {"decay": 1}})
    read = Block.from_config(block, "config")
    assert read.sizes == (1, 2) and read.shape == (3, 4) and read.zoom == (0.5, 1.0)
    assert read.rates == Rates(2.0) and isinstance(read.rates.rate, float)
    assert read.inner == Rates(3.0) and read.several == {"one": Rates(decay=1.0)}
    assert (read.kind, read.count, read.on) == ("a", 1, False)


def test_computed_fields_are_not_read():
    assert Block.from_config({}, "config", name="x").name == "x"
    with pytest.raises(InputError, match=r"config\.name: no such key"):
        Block.from_config({"name": "y"}, "config", name="x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kimd": "a"}, "config.block.kimd: no such key; did you mean 'kind'?"),
        ({"rat": 1.0}, "config.block.rat: no such key; did you mean 'rate'?"),
        ({"xyz": 1}, "config.block.xyz: no such key; the keys are name, kind, count, on, sizes,"),
        ({"kind": "c"}, "config.block.kind='c': expected one of 'a', 'b'"),
        ({"rate": -1}, "config.block.rate=-1.0: expected a number above 0"),
        ({"inner": {"rate": 0}}, "config.block.inner.rate=0.0: expected a number above 0"),
        ({"inner": {"ratio": 0}}, "config.block.inner.ratio: no such key; did you mean 'rate'?"),
        ({"inner": 3}, "config.block.inner=3: expected a block of keys"),
        ({"several": {"one": {"rate": 0}}}, "config.block.several.one.rate=0.0: expected"),
        ({"count": "many"}, "config.block.count='many': expected a whole number"),
        ({"count": 1.5}, "config.block.count=1.5: expected a whole number"),
        ({"count": True}, "config.block.count=True: expected a whole number"),
        ({"on": 1}, "config.block.on=1: expected True or False"),
        ({"name": None}, "config.block.name=None: expected a string"),
        ({"sizes": 3}, "config.block.sizes=3: expected a tuple of whole numbers"),
        ({"sizes": ("a",)}, "config.block.sizes=('a',): expected a tuple of whole numbers"),
        ({"shape": (1, 2, 3)}, "config.block.shape=(1, 2, 3): expected 2 whole numbers"),
        ({"zoom": "x"}, "config.block.zoom='x': expected a number or 2 numbers"),
    ],
)
def test_a_bad_value_is_named_with_what_was_expected(changes, message):
    with pytest.raises(InputError) as raised:
        Block.from_config({"name": "x", **changes}, "config.block")
    assert str(raised.value).startswith(message)


def test_a_key_without_default_is_required():
    with pytest.raises(InputError, match=r"config\.name: missing; expected a string"):
        Block.from_config({}, "config")


def test_rules_hold_without_a_configuration():
    with pytest.raises(InputError, match=r"rate=0: expected a number above 0"):
        Rates(rate=0)


def test_choices_are_looked_up_when_a_value_is_checked():
    options = ["a"]

    @dataclasses.dataclass(frozen=True)
    class Late(Settings):
        kind: str = choice("a", options)

    options.append("b")
    assert Late("b").kind == "b"
