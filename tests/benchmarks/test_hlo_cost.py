"""The reader of optimized programs, on programs whose costs can be counted by hand."""

import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import pytest

from benchmarks.hlo_cost import Peaks, program_cost

PEAKS = Peaks(1e9, {"bfloat16": 4e9, "tensorfloat32": 2e9, "float32": 1e9})

# As a TPU's compiler writes it: S(1) is on-chip memory, copies into it run in the background.
TPU = """\
HloModule test, is_scheduled=true

%fused (p0: f32[8,16], p1: f32[16,4]) -> f32[2,4] {
  %p0 = f32[8,16]{1,0:T(8,128)} parameter(0)
  %part = f32[2,16]{1,0:T(8,128)} slice(%p0), slice={[0:2], [0:16]}
  %p1 = f32[16,4]{1,0:T(8,128)S(1)} parameter(1)
  ROOT %dot = f32[2,4]{1,0:T(8,128)} convolution(%part, %p1), dim_labels=bf_io->bf
}

%condition (c: (s32[], f32[2,4])) -> pred[] {
  %c = (s32[], f32[2,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %bound = s32[] constant(7)
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

%body (b: (s32[], f32[2,4])) -> (s32[], f32[2,4]) {
  %b = (s32[], f32[2,4]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%b), index=0
  %x = f32[2,4]{1,0} get-tuple-element(%b), index=1
  %sum = f32[2,4]{1,0} all-reduce(%x), replica_groups={}, to_apply=%add
  ROOT %next = (s32[], f32[2,4]{1,0}) tuple(%j, %sum)
}

ENTRY %main (a: f32[8,16], w: f32[16,4]) -> f32[2,4] {
  %a = f32[8,16]{1,0:T(8,128)} parameter(0)
  %w = f32[16,4]{1,0:T(8,128)} parameter(1)
  %start = (f32[16,4]{1,0:S(1)}, f32[16,4]{1,0}, u32[]{:S(2)}) copy-start(%w)
  %done = f32[16,4]{1,0:T(8,128)S(1)} copy-done(%start)
  %y = f32[2,4]{1,0} fusion(%a, %done), kind=kOutput, calls=%fused, backend_config={"estimated_cycles":"90"}
  %zero = s32[] constant(0)
  %init = (s32[], f32[2,4]{1,0}) tuple(%zero, %y)
  %loop = (s32[], f32[2,4]{1,0}) while(%init), condition=%condition, body=%body
  ROOT %result = f32[2,4]{1,0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def compiled(function, *shapes: tuple[int, ...]) -> str:
    """The optimized program of a function of float32 arrays, for the CPU."""
    specs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*specs).compile().as_text()


def test_a_loop_counts_for_each_turn():
    def five_products(x, w):
        return jax.lax.scan(lambda x, _: (jnp.sin(x @ w), None), x, length=5)[0]

    cost = program_cost(compiled(five_products, (8, 16), (16, 16)))
    assert cost.flops == 5 * 2 * 8 * 16 * 16
    assert cost.loop_trips == 5


def test_loops_within_loops_are_multiplied():
    def inner(x, w):
        return jax.lax.fori_loop(0, 3, lambda _, y: jnp.sin(y @ w), x)

    nested = lambda x, w: jax.lax.fori_loop(0, 4, lambda _, y: inner(y, w), x)  # noqa: E731
    cost = program_cost(compiled(nested, (8, 16), (16, 16)))
    assert cost.flops == 4 * 3 * 2 * 8 * 16 * 16
    assert cost.loop_trips == 4 + 4 * 3


@pytest.mark.parametrize("strides, taps", [(1, 10), (2, 5)])  # of a row, that meet no padding
def test_padding_of_a_convolution_is_not_counted(strides, taps):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (strides,) * 2, [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    cost = program_cost(compiled(convolve, (2, 4, 4, 3), (3, 3, 3, 5)))
    assert cost.flops == 2 * (2 * 3 * 5) * taps**2


def test_the_gradient_of_a_convolution_costs_as_much_for_each_factor():
    def convolve(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
        return jnp.square(y).sum()

    gradient = program_cost(compiled(jax.grad(convolve, (0, 1)), (2, 8, 8, 4), (3, 3, 4, 4)))
    forward = program_cost(compiled(convolve, (2, 8, 8, 4), (3, 3, 4, 4)))
    assert gradient.flops == 3 * forward.flops > 0


def test_bytes_are_those_of_main_memory_and_of_what_is_touched():
    cost = program_cost(TPU, PEAKS)
    copy, part, result = 16 * 4 * 4, 2 * 16 * 4, 2 * 4 * 4
    # The copy reads the kernel; the fusion reads two rows and the kernel on the chip.
    assert cost.bytes == copy + (part + result) + 7 * 2 * result
    assert cost.flops == 2 * 2 * 16 * 4
    assert (cost.kernels, cost.loop_trips) == (1 + 7, 7)
    assert (cost.all_reduces, cost.all_reduce_bytes) == (7, 7 * result)
    assert (cost.cycles, cost.product_cycles) == (90, 90)
    seconds = [copy / 1e9, max(256 / 2e9, (part + result) / 1e9), 7 * 2 * result / 1e9]
    assert cost.roofline_seconds == pytest.approx(sum(seconds))


def test_products_in_float32_have_another_peak():
    exact = TPU.replace(
        "dim_labels=bf_io->bf", "dim_labels=bf_io->bf, operand_precision={highest,highest}"
    )
    slow = Peaks(1e12, {"bfloat16": 1e6, "tensorfloat32": 1e6, "float32": 1e3})
    assert (
        program_cost(exact, slow).roofline_seconds > 500 * program_cost(TPU, slow).roofline_seconds
    )


def test_all_reduces_of_a_program_for_two_devices():
    code = """
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
        from benchmarks.hlo_cost import program_cost
        mesh = Mesh(np.array(jax.devices()), ("data",))
        x = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=NamedSharding(mesh, P("data")))
        step = lambda x: jax.lax.fori_loop(0, 3, lambda _, y: y - y.mean(0), x)
        cost = program_cost(jax.jit(step).lower(x).compile().as_text())
        print(cost.all_reduces, cost.all_reduce_bytes)
    """
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", str(3 * 16 * 4.0)]


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        program_cost("module @jit_f {}")
