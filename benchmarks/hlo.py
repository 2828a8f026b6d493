"""Reads XLA's optimized programs (HLO) from their text: instructions, loops, multiplications."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

_SHAPE = re.compile(r"([a-z]+\d*[a-z\d]*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
_PRODUCTS = ("dot", "convolution")


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array in a program.

    Attributes:
      dtype: XLA's name, such as 'bf16'.
      dims: its size in each dimension.
      memory: number of the memory space; 0 is the main memory of the device, others are on chip.
    """

    dtype: str
    dims: tuple[int, ...]
    memory: int = 0

    @property
    def bytes(self) -> float:
        """Its size, without padding."""
        bits = 8 if self.dtype == "pred" else int(re.sub(r"^[a-z]+(\d*).*$", r"0\1", self.dtype))
        return math.prod(self.dims) * bits / 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program.

    Attributes:
      name: unique in its computation.
      opcode: such as 'fusion'.
      shapes: of the result; several for a tuple.
      operands: names of the instructions whose results it takes.
      arguments: what stands between its parentheses.
      attributes: the text behind them.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    arguments: str
    attributes: str

    def attribute(self, name: str) -> str:
        """The value of an attribute, without braces; '' if there is none."""
        found = re.search(rf"\b{name}=(?:\{{([^{{}}]*)\}}|%?([\w.\-?>]+))", self.attributes)
        return (found[1] if found[1] is not None else found[2]) if found else ""

    @property
    def target(self) -> str:
        """What a custom call calls, such as '__cublas$gemm'."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else ""


Computation = Mapping[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
      computations: by name, each a mapping of its instructions by name.
      entry: name of the computation that runs.
    """

    computations: Mapping[str, Computation]
    entry: str

    @classmethod
    def parse(cls, text: str) -> "Program":
        """Reads what `jax.stages.Compiled.as_text` returns.

        Raises:
          ValueError: the text is no program.
        """
        computations: dict[str, dict[str, Instruction]] = {}
        entry, current = "", None
        for line in text.splitlines():
            if header := _COMPUTATION.match(line):
                current = computations[header[2]] = {}
                entry = header[2] if header[1] else entry
            elif current is not None and (found := _INSTRUCTION.match(line)):
                instruction = _parse_instruction(found[1], found[2])
                if instruction is not None:
                    current[found[1]] = instruction
        if not entry:
            raise ValueError("expected the text of an HLO module with an ENTRY computation")
        return cls(computations, entry)

    def run(self) -> Iterator[tuple[Computation, Instruction, int]]:
        """Lists what runs: computation, instruction, and how many times.

        Bodies of loops are multiplied by their trip counts. The inside of a fusion is no
        instruction of its own. Of a conditional, all branches are listed.
        """
        yield from self._run(self.entry, 1)

    def _run(self, name: str, times: int) -> Iterator[tuple[Computation, Instruction, int]]:
        computation = self.computations[name]
        for instruction in computation.values():
            if instruction.opcode in ("while", "call", "conditional"):
                trips = self.trip_count(instruction) if instruction.opcode == "while" else 1
                for called in self.called(instruction):
                    yield from self._run(called, times * trips)
            else:
                yield computation, instruction, times

    def called(self, instruction: Instruction) -> list[str]:
        """Names of the computations that an instruction calls, but for the condition of a loop."""
        branches = instruction.attribute("branch_computations")
        names = _CALLED.findall(instruction.attributes) + re.findall(r"[\w.\-]+", branches)
        return [name for name in names if name in self.computations]

    def trip_count(self, loop: Instruction) -> int:
        """How often the body of a loop runs; 1 if the program does not say."""
        known = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.attributes)
        if known:
            return int(known[1])
        # Counted from 0: the bound is the one integer constant of the condition.
        condition = self.computations[loop.attribute("condition")].values()
        constants = [i.arguments for i in condition if i.opcode == "constant"]
        return max((int(text) for text in constants if text.isdigit()), default=1)

    def products(
        self, computation: Computation, instruction: Instruction
    ) -> Iterator[tuple[Computation, Instruction]]:
        """Lists the matrix products and convolutions of an instruction, inside fusions too."""
        library = instruction.target.startswith(("__cublas", "__cudnn$conv"))
        if instruction.opcode in _PRODUCTS or library:
            yield computation, instruction
        elif instruction.opcode == "fusion":
            for name in self.called(instruction):
                inner = self.computations[name]
                for part in inner.values():
                    yield from self.products(inner, part)


def _parse_instruction(name: str, text: str) -> Instruction | None:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.find(" ")
    result, text = text[:end], text[end:].lstrip()
    start = text.find("(")
    if start < 0:
        return None
    end = _closing(text, start)
    opcode, arguments = text[:start], text[start + 1 : end]
    operands = () if opcode == "constant" else tuple(re.findall(r"%([\w.\-]+)", arguments))
    return Instruction(name, opcode, _parse_shapes(result), operands, arguments, text[end + 1 :])


def _closing(text: str, start: int) -> int:
    """Position of the parenthesis that closes the one at `start`."""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] == "(") - (text[position] == ")")
        if not depth:
            return position
    return len(text)


def _parse_shapes(text: str) -> tuple[Shape, ...]:
    shapes = []
    for dtype, dims, layout in _SHAPE.findall(text):
        memory = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(size) for size in dims.split(",") if size)
        shapes.append(Shape(dtype, sizes, int(memory[1]) if memory else 0))
    return tuple(shapes)


def product_flops(computation: Computation, product: Instruction) -> int:
    """Floating-point operations of a matrix product or convolution; padding is not counted."""
    left, right = (computation[name].shapes[0].dims for name in product.operands[:2])
    result = product.shapes[0].dims
    if product.opcode == "convolution" or "conv" in product.target:
        if "BackwardInput" in product.target:  # the labels are those of the forward convolution
            left, result = result, left
        elif "BackwardFilter" in product.target:
            right, result = result, right
        return _convolution_flops(product, left, right, result)
    dims = product.attribute("lhs_contracting_dims")
    if not dims:  # cuBLAS: in the JSON of its configuration
        found = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', product.attributes)
        dims = found[1] if found else ""
    contracted = math.prod(left[int(i)] for i in re.findall(r"\d+", dims))
    return 2 * math.prod(result) * contracted


def _convolution_flops(
    product: Instruction, left: tuple[int, ...], right: tuple[int, ...], result: tuple[int, ...]
) -> int:
    labels = re.search(r"dim_labels=([\w?]+)_([\w?]+)->([\w?]+)", product.attributes)
    if labels is None:
        raise ValueError(f"{product.name}: a convolution without dim_labels")
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", product.attribute("window")))
    spatial = sum(label.isdigit() for label in labels[2])

    def values(key: str, default: str) -> list[str]:
        return window[key].split("x") if key in window else [default] * spatial

    positions = 1  # pairs of an output position and a tap that meet an input and no padding
    for axis in range(spatial):
        size, stride = int(values("size", "1")[axis]), int(values("stride", "1")[axis])
        low = int(values("pad", "0_0")[axis].split("_")[0])
        dilate, taps = (int(values(key, "1")[axis]) for key in ("lhs_dilate", "rhs_dilate"))
        inputs, outputs = left[labels[1].index(str(axis))], result[labels[3].index(str(axis))]
        offsets = (o * stride + tap * taps - low for tap in range(size) for o in range(outputs))
        positions *= sum(at >= 0 and at % dilate == 0 and at // dilate < inputs for at in offsets)
    channels = right[labels[2].index("i")] * right[labels[2].index("o")]
    batch = left[labels[1].index("b")] // int(product.attribute("batch_group_count") or 1)
    return 2 * channels * batch * positions
