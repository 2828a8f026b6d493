"""Commands of the documentation: each is read by its program, and those of a short day are run."""

import re
import shlex

import pytest

from tests.docs import programs
from tests.docs.pages import PAGES, ROOT, blocks, code_in_text, commands, prose

LANGUAGES = {"bash", "python", "text", "yaml", "json", "toml"}


@pytest.mark.parametrize("page", PAGES)
def test_the_program_takes_each_command(page):
    wrong = []
    for command in commands(page):
        try:
            programs.check(command.words)
        except programs.WrongCommand as error:
            wrong.append(f"{command}\n  {error}")
        wrong += [
            f"{command}: no {path}"
            for path in programs.paths(command.words)
            if not (ROOT / path).exists() and "…" not in path
        ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "command, words",
    [
        ("python main.py --mode=predic --workdir=x", "predic"),
        ("python main.py --mode=train --workdir=x --images=y", "--images: has no effect"),
        ("python main.py --config=configs/breakhis.py --workdir=x --config.batchsize=3", "did you"),
        ("densenet-flax slide --slides=x --output=y --strides=2", "strides"),
        ("python -m densenet_flax.weights convert a b --which=ema --activaton=none", "activaton"),
        ("densenet-flax evaluation compar a b", "compar"),
        ("python -m pytest tests/nothing", "no such tests"),
        ("make tests", "'tests'"),
        ("pip install '.[cuda14]'", "cuda14"),
        ("docker build --build-arg EXTRAS=cuda13 .", "EXTRAS"),
    ],
)
def test_a_wrong_command_is_refused(command, words):
    with pytest.raises(programs.WrongCommand, match=re.escape(words)):
        programs.check(shlex.split(command))


@pytest.mark.parametrize("page", PAGES)
def test_flags_and_keys_of_the_text_exist(page):
    wrong = []
    for line, code in code_in_text(page):
        try:
            if re.match(r"--[a-z]", code):
                programs.check_flag(code.partition(" ")[0])
            elif key := re.match(r"config\.(?!json|update)([a-z][\w.]*)", code):
                programs.check_key(key[1])
        except programs.WrongCommand as error:
            wrong.append(f"{page}:{line}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES)
def test_code_is_in_a_block_that_says_its_language(page):
    unknown = {(block.line, block.language) for block in blocks(page)}
    assert not {pair for pair in unknown if pair[1] not in LANGUAGES}
    indented = re.findall(r"^    (?:python|from|import|make|pip) .*", prose(page), re.MULTILINE)
    assert not indented
