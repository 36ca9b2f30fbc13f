# The training image: sft, grpo and benchmark. VARIANT=gpu has CUDA and vLLM; VARIANT=cpu runs the smoke recipe.
# Built from the repository's root: see README.md beside this file.
ARG BASE=python:3.11-slim-bookworm
ARG VARIANT=gpu

FROM ${BASE} AS needs
ARG VARIANT
# The CPU build of torch is on PyTorch's own index alone; an empty value leaves it to a wheel in images/wheels.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
COPY images/tools.lock images/kfp.lock images/deepspeed.lock images/train-${VARIANT}.lock ./
# A secret of the build, where given, is pip's configuration: an index that asks for a password, say.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=bind,source=images/wheels,target=/wheels \
    python3 -m venv tools && python3 -m venv --without-pip /opt/venv \
    && tools/bin/pip install --require-hashes --only-binary :all: --requirement tools.lock \
    && tools/bin/pip --python /opt/venv/bin/python install --require-hashes --only-binary :all: \
       --find-links /wheels ${TORCH_INDEX:+$([ "${VARIANT}" = gpu ] || echo --extra-index-url "${TORCH_INDEX}")} \
       --requirement "train-${VARIANT}.lock" \
    && tools/bin/pip --python /opt/venv/bin/python install --require-hashes --only-binary :all: --no-deps \
       --requirement kfp.lock \
    && tools/bin/pip wheel --require-hashes --no-deps --no-build-isolation --wheel-dir deepspeed \
       --requirement deepspeed.lock \
    && tools/bin/pip --python /opt/venv/bin/python install --no-deps --no-index deepspeed/*.whl

FROM needs AS wheel
COPY LICENSE README.md pyproject.toml ./
COPY components components
COPY pipeline pipeline
RUN tools/bin/pip wheel --no-deps --no-build-isolation --no-index --wheel-dir dist .

FROM ${BASE}
# Triton and DeepSpeed compile at run time; NCCL between machines goes over the verbs of RDMA where there are any.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ gcc ibverbs-providers libibverbs1 libnuma1 \
    && rm -rf /var/lib/apt/lists/*
# Any user of group 0 may write to /scratch, as OpenShift has it; Kubernetes mounts a volume there.
RUN useradd --uid 10001 --gid 0 --no-create-home --home-dir /scratch/home --shell /usr/sbin/nologin reasrm \
    && install --directory --owner=10001 --group=0 --mode=0775 /scratch /scratch/home /scratch/cache
COPY --from=needs /opt/venv /opt/venv
# The project is a layer of its own: a new version of it is a download of a few hundred kB.
RUN --mount=type=bind,from=wheel,source=/build,target=/build \
    /build/tools/bin/pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --no-index /build/dist/*.whl \
    && install --directory /usr/share/reasrm \
    && /build/tools/bin/cyclonedx-py environment --output-reproducible --output-file /usr/share/reasrm/sbom.json \
       /opt/venv/bin/python
# USER: a uid without a line in /etc/passwd has no name, and torch asks for one. CUDA_HOME: the compiler among torch's
# needs. NVIDIA_VISIBLE_DEVICES is not set: with `all`, a pod that asked for no GPU would see every one.
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONNOUSERSITE=1 \
    REASRM_WORKDIR=/scratch HOME=/scratch/home USER=reasrm \
    XDG_CACHE_HOME=/scratch/cache HF_HOME=/scratch/cache/huggingface MPLCONFIGDIR=/scratch/cache/matplotlib \
    TRITON_HOME=/scratch/cache TRITON_CACHE_DIR=/scratch/cache/triton TORCHINDUCTOR_CACHE_DIR=/scratch/cache/inductor \
    TORCH_EXTENSIONS_DIR=/scratch/cache/torch_extensions VLLM_CACHE_ROOT=/scratch/cache/vllm NUMBA_CACHE_DIR=/scratch/cache/numba \
    FLASHINFER_WORKSPACE_BASE=/scratch/cache CUDA_CACHE_PATH=/scratch/cache/cuda \
    CUDA_HOME=/opt/venv/lib/python3.11/site-packages/nvidia/cu13 NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    HF_HUB_DISABLE_TELEMETRY=1 MLFLOW_DISABLE_TELEMETRY=true VLLM_NO_USAGE_STATS=1 GIT_PYTHON_REFRESH=quiet
# Last, so that a new revision alone makes no layer anew.
ARG BASE
ARG VARIANT
ARG VERSION=unknown
ARG REVISION=unknown
ARG CREATED=unknown
# What the stages tell MLflow.
ENV REASRM_COMMIT=${REVISION}
LABEL org.opencontainers.image.title="reasrm/train" \
      org.opencontainers.image.description="Training and benchmark of the reasoning reward model pipeline (${VARIANT})" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${BASE}"
WORKDIR /scratch
USER 10001:0
CMD ["python3", "-m", "components.sft", "--help"]
