#!/usr/bin/env bash
# Figures of a machine with one GPU, or none, as Markdown in at most eight minutes after the
# installation. From a checkout of the project, on a bare machine:
#
#   bash benchmarks/accelerator.sh --peers=torch,keras > figures.md
#
# Makes .venv-accelerator (jax[cuda12] where nvidia-smi is), and .venv-accelerator-PEER for each peer:
# their CUDA libraries rarely fit together. With PYTHON=… nothing is installed; TORCH_PYTHON=… and
# KERAS_PYTHON=… do the same for the peers. All options are those of benchmarks/accelerator.py;
# --small takes seconds on a CPU.
set -euo pipefail
cd "$(dirname "$0")/.."

has_gpu() { command -v nvidia-smi > /dev/null && nvidia-smi > /dev/null 2>&1; }

environment() { # environment NAME PACKAGES…: the interpreter of an environment with these packages
  local folder=".venv-accelerator$1" python
  shift
  [ -x "$folder/bin/python" ] || python3 -m venv "$folder"
  "$folder/bin/python" -m pip install --quiet "$@" >&2
  echo "$folder/bin/python"
}

jax="jax"
if has_gpu; then jax="jax[cuda12]"; fi
python=${PYTHON:-$(environment "" -r requirements.txt "$jax")}
options=()
peers=""
for option in "$@"; do
  case "$option" in --peers=*) peers="${option#--peers=}" ;; esac
done
case ",$peers," in *,torch,*)
  options+=("--torch-python=${TORCH_PYTHON:-$(environment -torch torch timm safetensors numpy)}") ;;
esac
case ",$peers," in *,keras,*)
  options+=("--keras-python=${KERAS_PYTHON:-$(environment -keras keras "$jax" h5py numpy)}") ;;
esac
exec "$python" benchmarks/accelerator.py "$@" ${options[@]+"${options[@]}"}
