"""Damage to files: of any bytes, and of JSON and tables, whose structure stays one.

A function takes a random generator and a content, and returns another. What it does follows from
the generator alone, so that a number is enough to make an input again.
"""

import json
import random
from collections.abc import Callable
from typing import Any, TypeAlias

Mutator: TypeAlias = Callable[[random.Random, bytes], bytes]

_NUMBERS = (0, 1, 2, 255, 1000, 8192, 2**15, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63, -1)


def cut(rng: random.Random, data: bytes) -> bytes:
    """The beginning, as a copy that was interrupted leaves it."""
    return data[: _position(rng, len(data))]


def flip_bit(rng: random.Random, data: bytes) -> bytes:
    """One bit, as on a disk that rots."""
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def damage(rng: random.Random, data: bytes) -> bytes:
    """One to sixteen changes of bytes, anywhere or where headers are."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if not changed:
            break
        rng.choice(_CHANGES)(rng, changed, _position(rng, len(changed)))
    return bytes(changed)


def _position(rng: random.Random, length: int) -> int:
    """Half of them near the beginning, and some near the end."""
    end = rng.choice((length, length, min(length, 64), min(length, 512)))
    position = rng.randrange(end)
    return length - 1 - position if rng.random() < 0.1 else position


def _flip(rng: random.Random, data: bytearray, at: int) -> None:
    data[at] ^= 1 << rng.randrange(8)


def _byte(rng: random.Random, data: bytearray, at: int) -> None:
    data[at] = rng.randrange(256)


def _fill(rng: random.Random, data: bytearray, at: int) -> None:
    end = min(len(data), at + rng.choice((1, 2, 4, 8, 64)))
    data[at:end] = rng.choice((b"\0", b"\xff")) * (end - at)


def _number(rng: random.Random, data: bytearray, at: int) -> None:
    size = rng.choice((2, 4, 8))
    value = rng.choice(_NUMBERS) % 256**size
    data[at : at + size] = value.to_bytes(size, rng.choice(("little", "big")))


def _copy_over(rng: random.Random, data: bytearray, at: int) -> None:
    start, size = rng.randrange(len(data)), rng.randrange(1, 64)
    data[at : at + size] = data[start : start + size]


def _repeat(rng: random.Random, data: bytearray, at: int) -> None:
    size = rng.choice((1, 4, 16, 60, 512, 4096))
    data[at:at] = data[at : at + size]


def _insert(rng: random.Random, data: bytearray, at: int) -> None:
    data[at:at] = rng.randbytes(rng.randrange(1, 30))


def _delete(rng: random.Random, data: bytearray, at: int) -> None:
    del data[at : at + rng.choice((1, 2, 16, 512))]


def _truncate(rng: random.Random, data: bytearray, at: int) -> None:
    del data[at:]


_CHANGES = (
    *(_flip, _flip, _byte, _byte, _fill, _number, _number),
    *(_copy_over, _repeat, _insert, _delete, _truncate),
)


# JSON.


def _deep(opening: str, closing: str) -> Callable[[random.Random], str]:
    def text(rng: random.Random) -> str:
        depth = rng.choice((50, 2000, 100_000))
        return opening * depth + rng.choice(("", "0" + closing * depth))

    return text


# Text of a value: Python's `json` writes not all that JSON can say.
_VALUES: tuple[Callable[[random.Random], str], ...] = (
    *(lambda rng, text=text: text for text in ("null", "true", "false", '""', "[]", "{}", "0")),
    lambda rng: rng.choice(("NaN", "Infinity", "-Infinity", "1e400", "-0.0", "1e-320")),
    lambda rng: str(rng.choice((-1, 1, 2**31, 2**63, 2**64, 10**30, -(10**18)))),
    lambda rng: "9" * rng.choice((400, 5000)),
    lambda rng: repr(rng.uniform(-2, 2)),
    lambda rng: json.dumps("x" * rng.choice((1, 300, 100_000))),
    lambda rng: rng.choice(('"\\u0000"', '"\\ud800"', '"a\\nb"', '"\\u001b[2J"', '"../../x"')),
    lambda rng: json.dumps([[1, 2], {"a": None}, "b"]),
    lambda rng: json.dumps(list(range(rng.choice((1, 2, 3, 1000))))),
    _deep("[", "]"),
    _deep('{"a":', "}"),
)


def damage_json(rng: random.Random, data: bytes) -> bytes:
    """One to three values, keys or places of a JSON document; sometimes its text."""
    document = json.loads(data)
    strange: list[str] = []  # texts that replace strings which no document has
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        document = _change_value(rng, document, strange)
    text = json.dumps(document, ensure_ascii=rng.random() < 0.5)
    for number, value in enumerate(strange):
        text = text.replace(f'"\\u0001{number}"', value)
    encoded = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.05:
        encoded = rng.choice(
            (
                b"\xef\xbb\xbf" + encoded,
                encoded + encoded,
                b"\xff\xfe" + text.encode("utf-16-le", "surrogatepass"),
            )
        )
    return encoded


def _change_value(rng: random.Random, document: Any, strange: list[str]) -> Any:
    def invent() -> str:
        strange.append(rng.choice(_VALUES)(rng))
        return f"\x01{len(strange) - 1}"

    if not isinstance(document, dict | list) or not document or rng.random() < 0.03:
        return invent()
    node: Any = document
    while True:
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        child = node[key]
        if isinstance(child, dict | list) and child and rng.random() < 0.75:
            node = child
            continue
        kind = rng.random()
        if kind < 0.6:
            node[key] = invent()
        elif kind < 0.75:
            del node[key]
        elif kind < 0.85 and isinstance(node, dict):
            node[rng.choice(("", "x", f"{key} ", "é\n"))] = node.pop(key)
        elif isinstance(node, dict):
            other = rng.choice(list(node))
            node[key], node[other] = node[other], node[key]
        else:
            node.insert(rng.randrange(len(node)), child)
        return document


def damage_json_lines(rng: random.Random, data: bytes) -> bytes:
    """A line of JSON, or the order and number of the lines."""
    lines = data.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    if rng.random() < 0.6:
        lines[at] = damage_json(rng, lines[at]) + b"\n"
        return b"".join(lines)
    return _change_lines(rng, lines, at)


def _change_lines(rng: random.Random, lines: list[bytes], at: int) -> bytes:
    other = rng.randrange(len(lines))
    kind = rng.randrange(5)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(other, lines[at])
    elif kind == 2:
        lines[at], lines[other] = lines[other], lines[at]
    elif kind == 3:
        lines[at:at] = [rng.choice((b"\n", b"\0" * 600 + b"\n", rng.randbytes(9) + b"\n", b"{}\n"))]
    else:
        lines[at] = lines[at][: rng.randrange(len(lines[at]))] + lines[other]
    return b"".join(lines)


# Tables.

_CELLS = (
    *("", "0", "-1", "nan", "inf", "1e999", "9" * 5000, "1_0", "٣", "x", "x" * 140_000, "=1+1"),
    *("../x.png", "/etc/passwd", "a\0b", '"', '""', "\r", "\ud800", "\x1b[2J", "None", "fold_1"),
)


def damage_table(rng: random.Random, data: bytes) -> bytes:
    """Cells, columns or rows of a CSV, its separators or its encoding."""
    lines = data.splitlines(keepends=True)
    if rng.random() < 0.25:
        return _change_lines(rng, lines, rng.randrange(len(lines)))
    text = [line.decode("utf-8", "surrogateescape").rstrip("\r\n").split(",") for line in lines]
    for _ in range(rng.choice((1, 1, 2, 4))):
        row = rng.choice((0, rng.randrange(len(text))))
        column = rng.randrange(max(1, len(text[row])))
        kind = rng.randrange(4)
        if kind == 0:
            text[row][column : column + 1] = [rng.choice(_CELLS)]
        elif kind == 1:
            text[row][column : column + 1] = []
        elif kind == 2:
            text[row].insert(column, rng.choice(text[row] or [""]))
        else:
            other = rng.choice(text)
            text[row][column : column + 1] = other[column : column + 1]
    separator = rng.choice((",", ",", ",", ";", "\t", ""))
    joined = rng.choice(("\n", "\n", "\r\n", "\r")).join(separator.join(row) for row in text)
    encoding = rng.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"))
    return joined.encode(encoding, "replace" if encoding == "latin-1" else "surrogatepass")
