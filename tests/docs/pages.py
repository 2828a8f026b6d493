"""The pages of the documentation as data: their blocks of code, and the commands in these."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md")),
)
PROGRAMS = ("python", ".venv/bin/python", "densenet-flax", "make", "pip")


class Block(NamedTuple):
    """A block between fences."""

    page: str
    line: int  # of its first line
    language: str
    text: str


class Command(NamedTuple):
    """One command of a page, as a shell reads it."""

    page: str
    line: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {shlex.join(self.words)}"


def blocks(page: str) -> Iterator[Block]:
    text = (ROOT / page).read_text()
    for match in re.finditer(r"^( *)```+(\w*)\n(.*?)^ *```+$", text, re.MULTILINE | re.DOTALL):
        yield Block(page, text.count("\n", 0, match.start(3)) + 1, match[2], match[3])


def prose(page: str) -> str:
    """A page without its blocks, whose lines stay where they are."""
    return re.sub(
        r"^ *```+\w*\n.*?^ *```+$",
        lambda match: "\n" * match[0].count("\n"),
        (ROOT / page).read_text(),
        flags=re.MULTILINE | re.DOTALL,
    )


def code_in_text(page: str) -> Iterator[tuple[int, str]]:
    """What is between backticks, with its line."""
    text = prose(page)
    for match in re.finditer(r"(?<!`)`([^`\n]+)`(?!`)", text):
        yield text.count("\n", 0, match.start()) + 1, match[1]


def commands(page: str) -> Iterator[Command]:
    """Commands of the blocks, and those of the text that have arguments."""
    for block in blocks(page):
        if block.language == "bash":
            lines = re.sub(r"\\\n", lambda _: "\\\0", block.text).split("\n")
            number = block.line
            for line in lines:
                yield from _split(page, number, line.replace("\\\0", " "))
                number += 1 + line.count("\0")
    for number, code in code_in_text(page):
        if code.startswith(tuple(f"{program} " for program in PROGRAMS)):
            yield from _split(page, number, code)


def _split(page: str, number: int, line: str) -> Iterator[Command]:
    if match := re.fullmatch(r"\w+=\$\((.+)\)", line):  # the output of a command in a variable
        line = match[1]
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|><;")
    lexer.commenters, lexer.whitespace_split = "#", True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word in {"&&", "|", ";"}:
            if words:
                yield Command(page, number, tuple(words))
            words = []
        else:
            words.append(word)
