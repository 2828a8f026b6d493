# For a CPU:          docker build --tag densenet_flax .
# For an NVIDIA GPU:  docker build --tag densenet_flax:cuda13 --build-arg EXTRA=cuda13 .
#
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" --volume "$PWD/runs:/densenet_flax/runs" \
#     densenet_flax:cuda13 --config=configs/quickstart.py --workdir=runs/quickstart
#
# CUDA comes with JAX's wheels, so the GPU image needs the host's driver and nothing else of CUDA.
ARG PYTHON=3.13
FROM python:${PYTHON}-slim
# '', cuda12, cuda13 or tpu: extras of pyproject.toml.
ARG EXTRA=""

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /densenet_flax

# The dependencies are a layer of their own, which a change of the code does not build again.
COPY requirements.lock ./
RUN python -m pip install --requirement requirements.lock
COPY pyproject.toml setup.py requirements.txt README.md LICENSE main.py ./
COPY densenet_flax densenet_flax
COPY configs configs
RUN python -m pip install --constraint requirements.lock --editable ".${EXTRA:+[$EXTRA]}"

# Any user may run it: prepared data and JAX's caches are below HOME.
RUN mkdir --mode=1777 /cache
ENV HOME=/cache
ENTRYPOINT ["python", "main.py"]
CMD ["--help"]
