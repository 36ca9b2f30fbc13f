# The light image: prepare, traces, filter, gate, publish, report, preflight and the launcher of training jobs.
# Built from the repository's root: see README.md beside this file.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS needs
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ONLY_BINARY=:all:
WORKDIR /build
COPY images/tools.lock images/kfp.lock images/stage.lock ./
# A secret of the build, where given, is pip's configuration: an index that asks for a password, say.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python3 -m venv tools && python3 -m venv --without-pip /opt/venv \
    && tools/bin/pip install --require-hashes --requirement tools.lock \
    && tools/bin/pip --python /opt/venv/bin/python install --require-hashes --requirement stage.lock \
    && tools/bin/pip --python /opt/venv/bin/python install --require-hashes --no-deps --requirement kfp.lock

FROM needs AS wheel
COPY LICENSE README.md pyproject.toml ./
COPY components components
COPY pipeline pipeline
RUN tools/bin/pip wheel --no-deps --no-build-isolation --no-index --wheel-dir dist .

FROM ${BASE}
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
# USER: a uid without a line in /etc/passwd has no name, and torch asks for one.
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONNOUSERSITE=1 \
    REASRM_WORKDIR=/scratch HOME=/scratch/home USER=reasrm \
    XDG_CACHE_HOME=/scratch/cache HF_HOME=/scratch/cache/huggingface MPLCONFIGDIR=/scratch/cache/matplotlib \
    HF_HUB_DISABLE_TELEMETRY=1 MLFLOW_DISABLE_TELEMETRY=true GIT_PYTHON_REFRESH=quiet
# Last, so that a new revision alone makes no layer anew.
ARG BASE
ARG VERSION=unknown
ARG REVISION=unknown
ARG CREATED=unknown
# What the stages tell MLflow.
ENV REASRM_COMMIT=${REVISION}
LABEL org.opencontainers.image.title="reasrm/stage" \
      org.opencontainers.image.description="Stages of the reasoning reward model pipeline that need no GPU" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${BASE}"
WORKDIR /scratch
USER 10001:0
CMD ["python3", "-m", "components.prepare", "--help"]
