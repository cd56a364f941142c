# ppma on CUDA 13, for Docker, enroot and pyxis; apptainer.def is the same for Apptainer.
#   python -m build --wheel && docker build -t ppma .
#   docker run --rm --gpus all --shm-size 16g --user "$(id -u)" -e HOME=/tmp -v "$PWD:/data" ppma \
#       ppma features clip.mp4 --checkpoint run --out clip.npz
# The base image has the CUDA runtime; the wheels bring cuBLAS, cuDNN and NCCL.
FROM nvidia/cuda:13.0.0-base-ubuntu24.04

# g++ and Python.h: torch.compile and Triton build against them when a run starts.
# hadolint ignore=DL3008 # Ubuntu keeps only the newest release of a package
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

COPY dist/*.whl constraints.txt /opt/ppma/
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/python -m pip install --no-cache-dir -c /opt/ppma/constraints.txt /opt/ppma/*.whl

# video: NVDEC, with which DALI decodes
ENV PATH=/opt/venv/bin:$PATH \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
RUN useradd --create-home --uid 1001 ppma
USER 1001
WORKDIR /data
CMD ["ppma", "doctor"]
