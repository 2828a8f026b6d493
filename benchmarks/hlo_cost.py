"""What an optimized program costs, with loops multiplied by their trip counts.

XLA's own `cost_analysis` counts the body of a loop once, whatever its trip count.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

from benchmarks.hlo import Computation, Instruction, Program, Shape, product_flops

# Instructions, and targets of custom calls on a TPU, that run nothing.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
_FREE |= {"partition-id", "replica-id", "opt-barrier", "domain", "ConcatBitcast", "AllocateBuffer"}


@dataclasses.dataclass(frozen=True)
class Peaks:
    """What a device can do at most.

    Attributes:
      bytes_per_second: of its main memory.
      flops_per_second: of matrix products, by what they are computed in: 'bfloat16',
        'tensorfloat32' or 'float32'.
    """

    bytes_per_second: float
    flops_per_second: Mapping[str, float]


@dataclasses.dataclass
class Cost:
    """Costs of one run of a program on one device.

    Attributes:
      flops: of matrix products and convolutions.
      bytes: read from and written to the main memory, operands and results of every kernel.
      kernels: launched, or on a TPU operations run; copies in the background are not counted.
      cycles: by XLA's estimates, which only a TPU's programs carry and not for every operation.
      product_cycles: those of operations with a matrix product.
      roofline_seconds: the sum over the kernels of the longer of the two times that their bytes and
        their flops take at the device's peaks; 0 if those are unknown.
      all_reduces: sums over devices.
      all_reduce_bytes: that they sum.
      loop_trips: turns of all loops.
    """

    flops: float = 0
    bytes: float = 0
    kernels: int = 0
    cycles: int = 0
    product_cycles: int = 0
    roofline_seconds: float = 0
    all_reduces: int = 0
    all_reduce_bytes: float = 0
    loop_trips: int = 0


def program_cost(text: str, peaks: Peaks | None = None) -> Cost:
    """Adds up the costs of a program.

    Args:
      text: what `jax.stages.Compiled.as_text` returns.
      peaks: of the device that it is compiled for.

    Raises:
      ValueError: the text is no program.
    """
    program = Program.parse(text)
    cost = Cost(loop_trips=_loop_trips(program))
    for computation, instruction, times in program.run():
        opcode = instruction.opcode
        if {opcode, instruction.target} & _FREE or opcode.endswith(("-done", "-update")):
            continue
        products = list(program.products(computation, instruction))
        flops = sum(product_flops(inner, product) for inner, product in products)
        moved = moved_bytes(program, computation, instruction)
        cost.flops += times * flops
        cost.bytes += times * moved
        if opcode not in ("copy-start", "slice-start", "async-start"):
            cost.kernels += times
        if opcode.startswith("all-reduce"):
            cost.all_reduces += times
            cost.all_reduce_bytes += times * sum(shape.bytes for shape in instruction.shapes)
        estimate = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
        cycles = times * int(estimate[1]) if estimate else 0
        cost.cycles += cycles
        cost.product_cycles += cycles if products else 0
        if peaks is not None:
            seconds = sum(
                product_flops(inner, product) / peaks.flops_per_second[computed_in(inner, product)]
                for inner, product in products
            )
            cost.roofline_seconds += times * max(seconds, moved / peaks.bytes_per_second)
    return cost


def computed_in(computation: Computation, product: Instruction) -> str:
    """What the factors of a product on a GPU are rounded to: a key of `Peaks.flops_per_second`."""
    if computation[product.operands[0]].shapes[0].dtype != "f32":
        return "bfloat16"
    text = product.attributes.lower()
    exact = re.search(r"\bhighest\b|dot_f32_f32_f32\b", text)
    return "float32" if exact else "tensorfloat32"


def moved_bytes(program: Program, computation: Computation, instruction: Instruction) -> float:
    """Bytes of main memory that an instruction reads and writes.

    Of what is sliced, or updated in place, only the part that is touched.
    """
    operands = [computation[name].shapes for name in instruction.operands if name in computation]
    result = _main_memory(instruction.shapes)
    opcode = instruction.opcode
    if opcode in ("slice", "dynamic-slice"):
        return result + _read_part(operands[0], instruction.shapes[0])
    if opcode == "dynamic-update-slice":
        return 2 * _main_memory(operands[1])
    if opcode == "copy-start":  # (destination, source, context)
        return _main_memory(operands[0]) + _main_memory(instruction.shapes[:1])
    if opcode == "slice-start":  # ((source), destination, context)
        destination = instruction.shapes[1]
        return _read_part(operands[0], destination) + _main_memory((destination,))
    if opcode == "custom-call" and "$" in instruction.target:  # the last result is the workspace
        result = _main_memory(instruction.shapes[:-1] or instruction.shapes)
    called = program.called(instruction) if opcode == "fusion" else []
    if not called:
        return result + sum(_main_memory(shapes) for shapes in operands)
    return _fusion_bytes(program.computations[called[0]], result)


def _read_part(source: tuple[Shape, ...], part: Shape) -> float:
    return part.bytes if source[0].memory == 0 else 0


def _fusion_bytes(body: Computation, result: float) -> float:
    users: dict[str, list[tuple[str, Instruction]]] = defaultdict(list)
    for inner in body.values():
        for name in inner.operands:
            users[name].append((name, inner))

    def uses(name: str) -> Iterator[tuple[str, Instruction]]:
        for operand, user in users[name]:
            if user.opcode in ("bitcast", "reshape"):
                yield from uses(user.name)
            else:
                yield operand, user

    read = 0.0
    for parameter in (inner for inner in body.values() if inner.opcode == "parameter"):
        if any(shape.memory for shape in parameter.shapes):
            continue
        found = list(uses(parameter.name))
        opcodes = {user.opcode for _, user in found}
        if found and opcodes <= {"slice", "dynamic-slice"}:
            read += sum(user.shapes[0].bytes for _, user in found)
        elif (
            found
            and opcodes == {"dynamic-update-slice"}
            and all(user.operands[0] == operand for operand, user in found)
        ):
            parts = [body[user.operands[1]].shapes[0].bytes for _, user in found]
            result -= sum(user.shapes[0].bytes for _, user in found) - sum(parts)
        else:
            read += sum(shape.bytes for shape in parameter.shapes)
    return read + max(result, 0)


def _main_memory(shapes: tuple[Shape, ...]) -> float:
    return sum(shape.bytes for shape in shapes if shape.memory == 0)


def _loop_trips(program: Program) -> int:
    """Turns of all loops; those of a loop within a loop count each time."""

    def trips(name: str, times: int) -> int:
        total = 0
        for instruction in program.computations[name].values():
            if instruction.opcode in ("while", "call", "conditional"):
                loop = instruction.opcode == "while"
                turns = times * (program.trip_count(instruction) if loop else 1)
                total += turns if loop else 0
                total += sum(trips(called, turns) for called in program.called(instruction))
        return total

    return trips(program.entry, 1)
