"""One device, eight, and two processes of two: more devices change only the speed."""

import signal
import socket

import jax
import numpy as np
import pytest

from densenet_flax.storage.checkpoint import Checkpoints
from tests.helpers.program import Program, make_cache
from tests.helpers.program import start as start_main

ORDERS = ("0110", "0101")  # of the processes of the devices in a mesh


def start(workdir, devices, stop_at=0, *more):
    return Program("-m", "tests.common.several_devices", workdir, devices, stop_at, *more)


def finish(process):
    done = process.wait()
    assert done.returncode == 0, done.stderr[-3000:]
    epochs = [
        [float(word) for word in line.split()[1:]]
        for line in done.stdout.splitlines()
        if line.startswith("epoch")
    ]
    rows = int(done.stdout.split("rows ")[1])
    return np.array(epochs), rows


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one")
    return workdir, finish(start(workdir, 1))


def weights(workdir):
    checkpoints = Checkpoints(workdir / "checkpoints")
    return checkpoints.restore(checkpoints.steps[-1]).variables


def assert_agree(epochs, wanted, workdir, other):
    """To rounding: the devices' sums are added in another order, and Adam amplifies that."""
    np.testing.assert_allclose(epochs, wanted, rtol=1e-3)
    apart = [
        np.abs(a - b).max() / (np.abs(b).max() + 1e-3)
        for a, b in zip(
            jax.tree.leaves(weights(workdir)), jax.tree.leaves(weights(other)), strict=True
        )
    ]
    assert max(apart) < 2e-2


def test_eight_devices_agree_with_one(one, tmp_path):
    epochs, rows = finish(start(tmp_path, 8))
    assert rows == 16  # 11 images, filled up for eight devices
    assert_agree(epochs, one[1][0], tmp_path, one[0])


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two processes of two devices each, on meshes that interleave them as TPU slices do."""
    workdir, port = tmp_path_factory.mktemp("two"), free_port()
    both = [start(workdir, 2, 0, process, 2, port, *ORDERS) for process in (0, 1)]
    (epochs, rows), (_, other_rows) = (finish(process) for process in both)
    return workdir, dict(zip(ORDERS, np.split(epochs, 2), strict=True)), [rows, other_rows]


@pytest.mark.parametrize("order", ORDERS)
def test_two_processes_train_as_one_does_and_read_half_the_rows_each(one, two, order):
    workdir, epochs, rows = two
    assert rows == [6, 6]  # 11 images, filled up to 12 for four devices
    assert_agree(epochs[order], one[1][0], workdir / order, one[0])


@pytest.mark.parametrize("order", ORDERS)
def test_each_row_is_of_its_image_whatever_the_order_of_the_devices(one, two, order):
    with np.load(one[0] / "rows.npz") as expected, np.load(two[0] / order / "rows.npz") as rows:
        assert rows["gathered"].tolist() == [0, 1]
        assert rows["broadcast"].tolist() == [0, 0]
        assert rows["returned_ids"].tolist() == rows["ids"].tolist()
        for name in ("logits", "probability", "features", "maps"):
            np.testing.assert_allclose(rows[name], expected[name], atol=1e-5, err_msg=name)


def test_the_prefix_cache_holds_each_image_in_its_row(one, two):
    with np.load(one[0] / "rows.npz") as expected, np.load(two[0] / "0101" / "rows.npz") as rows:
        names = [name for name in rows.files if name.startswith("cached")]
        assert names == [name for name in expected.files if name.startswith("cached")]
        assert len(names) == 2  # of two stages
        for name in names:
            np.testing.assert_allclose(rows[name], expected[name], atol=1e-5, err_msg=name)


def test_processes_that_differ_are_told_what_in(two):
    with np.load(two[0] / "0101" / "rows.npz") as rows:
        sees, workdir, split = rows["disagreements"].tolist()
    assert sees == "all see it"
    assert "of-process-0: process 1 of this run does not see what process 0 writes" in workdir
    assert split.startswith("the split: not the same in process 1 as in process 0")


def test_a_run_that_lost_a_process_says_so_and_resumes_to_the_same_bits(two, tmp_path):
    port, order = free_port(), ORDERS[0]
    both = [start(tmp_path, 2, -8, process, 2, port, order) for process in (0, 1)]
    done = [process.wait() for process in both]
    errors = [process.stderr for process in done]
    assert [process.returncode for process in done] == [1, -signal.SIGKILL], errors
    assert errors[0].startswith("error: process 1 of this run ended or cannot be reached any more")
    assert len(errors[0].splitlines()) == 1
    assert Checkpoints(tmp_path / order / "checkpoints").steps[-1] == 6
    port = free_port()
    for process in [start(tmp_path, 2, 0, process, 2, port, order) for process in (0, 1)]:
        finish(process)
    for resumed, straight in zip(
        jax.tree.leaves(weights(tmp_path / order)),
        jax.tree.leaves(weights(two[0] / order)),
        strict=True,
    ):
        np.testing.assert_array_equal(resumed, straight)


def test_a_run_goes_on_with_another_number_of_devices(one, tmp_path):
    finish(start(tmp_path, 8, 8))
    assert Checkpoints(tmp_path / "checkpoints").steps[-1] == 8  # in the middle of an epoch
    epochs, _ = finish(start(tmp_path, 1, 0))
    assert epochs[:, 0].tolist() == [9, 12]
    assert_agree(epochs, one[1][0][2:], tmp_path, one[0])


def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path):
    """And the two of them, started as a user does, leave one whole work directory."""
    port, cache = free_port(), make_cache(tmp_path)

    def main(process, *more):
        more += (f"--coordinator=127.0.0.1:{port}", "--processes=2", f"--process={process}")
        return start_main(tmp_path / "w", cache, *more)

    both = [main(process, "--config.stages.finetune.duration=3000 epochs") for process in (0, 1)]
    try:
        for line in both[0].stderr:
            if "finetune 2/" in line:
                break
        both[1].terminate()
        rest = [process.communicate(timeout=120)[1] for process in both]
        assert [process.returncode for process in both] == [143, 143], rest
        stopped = {line for text in rest for line in text.splitlines() if "stopped at" in line}
        assert len(stopped) == 1
        step = Checkpoints(tmp_path / "w" / "checkpoints").steps[-1]
        assert f"stopped at step {step}," in stopped.pop()
    finally:
        for process in both:
            process.kill()
