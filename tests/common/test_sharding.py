"""One device, eight, and two processes of two: more devices change only the speed."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from densenet_flax.common import sharding
from densenet_flax.common.sharding import process_slice
from densenet_flax.storage.checkpoint import Checkpoints

ROOT = Path(__file__).parents[2]


def start(workdir, devices, stop_at=0, *more):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("XLA_FLAGS", None)
    words = [sys.executable, "-m", "tests.common.several_devices", str(workdir), str(devices)]
    words.append(str(stop_at))
    return subprocess.Popen(
        [*words, *map(str, more)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    epochs = [
        [float(word) for word in line.split()[1:]]
        for line in out.splitlines()
        if line.startswith("epoch")
    ]
    rows = int(out.split("rows ")[1])
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


def test_rows_never_go_to_another_process():
    """On a TPU slice of several hosts `jax.make_mesh` interleaves the hosts' devices."""
    devices = np.array([SimpleNamespace(process_index=p) for p in (0, 1, 1, 0)])
    with pytest.raises(ValueError, match=r"processes \[0, 1, 1, 0\].*make_mesh"):
        process_slice(np.arange(8), SimpleNamespace(devices=devices, size=4))


def test_the_mesh_is_in_the_order_of_the_processes(monkeypatch):
    devices = [SimpleNamespace(process_index=p, id=i) for i, p in enumerate((0, 1, 1, 0))]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(sharding, "Mesh", lambda array, *_, **__: array)
    assert [device.process_index for device in sharding.make_mesh()] == [0, 0, 1, 1]


def test_eight_devices_agree_with_one(one, tmp_path):
    epochs, rows = finish(start(tmp_path, 8))
    assert rows == 16  # 11 images, filled up for eight devices
    assert_agree(epochs, one[1][0], tmp_path, one[0])


def test_two_processes_agree_with_one_and_read_half_each(one, tmp_path):
    port = free_port()
    both = [start(tmp_path, 2, 0, process, 2, port) for process in (0, 1)]
    (epochs, rows), (_, other_rows) = (finish(process) for process in both)
    assert rows == other_rows == 6  # 11 images, filled up to 12 for four devices
    assert_agree(epochs, one[1][0], tmp_path, one[0])


def test_a_run_goes_on_with_another_number_of_devices(one, tmp_path):
    finish(start(tmp_path, 8, 8))
    assert Checkpoints(tmp_path / "checkpoints").steps[-1] == 8  # in the middle of an epoch
    epochs, _ = finish(start(tmp_path, 1, 0))
    assert epochs[:, 0].tolist() == [9, 12]
    assert_agree(epochs, one[1][0][2:], tmp_path, one[0])


def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path):
    """And the two of them, started as a user does, leave one whole work directory."""
    port = free_port()

    def main(process, *more):
        words = [sys.executable, "main.py", "--config=tests/configs/tiny.py"]
        words += [f"--workdir={tmp_path / 'w'}", f"--config.cache_dir={tmp_path / 'cache'}"]
        words += [f"--coordinator=127.0.0.1:{port}", "--processes=2", f"--process={process}", *more]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        return subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)

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
