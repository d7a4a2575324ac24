# An image with everything in requirements.txt, in which nothing is compiled:
#   docker build -t mmlk . && docker run --rm mmlk
# torch from PyPI brings its own CUDA libraries, so the same image runs on a GPU:
#   docker run --rm --gpus all --shm-size 8g -it mmlk bash
# With all of mmcv's operators, compiled for CUDA. This takes nvcc, hence another base image. Not run by the project:
#   docker build -t mmlk:cuda --build-arg BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04 \
#       --build-arg INSTALL=--compiled-ops --build-arg FORCE_CUDA=1 --build-arg TORCH_CUDA_ARCH_LIST=9.0 .
ARG BASE=debian:bookworm-slim
FROM ${BASE}
ARG INSTALL=
ARG FORCE_CUDA=0
ARG TORCH_CUDA_ARCH_LIST=
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /mmlk
COPY . .
RUN bash tools/install.sh ${INSTALL} && rm -rf /root/.cache/pip
ENV VIRTUAL_ENV=/mmlk/.venv
ENV PATH=/mmlk/.venv/bin:${PATH}
CMD ["bash", "tools/quickstart.sh"]
