"""Commands of the documentation: each is read by its program, and those of a short day are run."""

import re

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
