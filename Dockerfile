# sidrec for one or more NVIDIA GPUs. Not built yet: no Docker engine was at hand. Checked with
# hadolint; the pip step was tried with --dry-run.
#   docker build -t sidrec .
#   docker run --gpus all --user "$(id -u)" -v "$PWD:/workspace" sidrec doctor
#   docker run --gpus all --user "$(id -u)" --shm-size 2g -v "$PWD:/workspace" sidrec fit --config …
# torch 2.13 (CUDA 13) and faiss-gpu 1.15 (CUDA 12) bring their own CUDA libraries; the base gives
# the driver's side, and the driver must be of CUDA 13 (580 or newer).
# The tag of the base image is exact, but not its digest, which could not be looked up; pin it with
#   docker buildx imagetools inspect nvidia/cuda:12.6.3-base-ubuntu24.04

FROM nvidia/cuda:12.6.3-base-ubuntu24.04 AS base
ENV DEBIAN_FRONTEND=noninteractive PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    NVIDIA_REQUIRE_CUDA="cuda>=13.0"
# Ubuntu deletes old versions of its packages: a pinned version breaks the build within weeks.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 libgomp1 ca-certificates \
 && rm -rf /var/lib/apt/lists/*

FROM base AS build
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3-venv \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/sidrec
WORKDIR /src
# Dependencies first: they change less often than the code. Every file has to have its hash.
COPY constraints constraints
RUN /opt/sidrec/bin/pip install --no-cache-dir --no-deps --require-hashes -r constraints/lock-gpu.txt
COPY pyproject.toml README.md LICENSE ./
COPY sidrec sidrec
RUN PIP_CONSTRAINT=constraints/cpu.txt /opt/sidrec/bin/pip install --no-cache-dir --no-deps . \
 && /opt/sidrec/bin/sidrec --version

FROM base AS run
COPY --from=build /opt/sidrec /opt/sidrec
RUN useradd --create-home --uid 10001 sidrec \
 && mkdir /workspace /cache && chown sidrec /workspace && chmod 1777 /cache
COPY configs /usr/share/sidrec/configs
ENV PATH=/opt/sidrec/bin:$PATH HOME=/cache SIDREC_CACHE=/cache/sidrec HF_HOME=/cache/huggingface
USER 10001
WORKDIR /workspace
ENTRYPOINT ["sidrec"]
CMD ["--help"]
