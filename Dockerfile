# syntax=docker/dockerfile:1
# Graft's images. No weights are in them; models come from the hub or a volume.
#
#   docker build --target shell-router  -t graft-shell-router .
#   docker build --target sglang-router -t graft-sglang-router .
#   docker build --target worker        -t graft-worker .           (GPU: CUDA, SGLang, NIXL; some 20 GB)
#   docker build --target worker-cpu    -t graft-worker-cpu .       (CPU engine, to try it out)

ARG PYTHON_IMAGE=python:3.12-slim
# The CPU engine's packages are pinned to what was tested together, on 3.11.
ARG CPU_PYTHON_IMAGE=python:3.11-slim
# With nvcc: FlashInfer and Triton compile kernels at start.
ARG CUDA_IMAGE=nvidia/cuda:13.0.1-devel-ubuntu24.04


FROM ${PYTHON_IMAGE} AS python-base
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home graft
ENV PATH=/opt/graft/bin:$PATH PYTHONUNBUFFERED=1
ENTRYPOINT ["tini", "--"]


FROM ${PYTHON_IMAGE} AS shell-router-build
# `[early-exit]` adds what compares answers by an embedding model (and torch with it).
ARG EXTRAS=
WORKDIR /src
# What is not copied is not installed: no experiments.
COPY pyproject.toml setup.py README.md LICENSE ./
COPY sglang_ext sglang_ext
COPY shell_router shell_router
COPY launch launch
COPY graft graft
COPY cfgs cfgs
RUN python -m venv /opt/graft && /opt/graft/bin/pip install --no-cache-dir ".${EXTRAS}"

FROM python-base AS shell-router
COPY --from=shell-router-build /opt/graft /opt/graft
USER 10001:10001
EXPOSE 8000
CMD ["python", "-m", "shell_router", "--config", "/etc/graft/router.json"]


FROM ${PYTHON_IMAGE} AS sglang-router-build
# The version that the extra `gpu` of pyproject.toml pins.
ARG SGLANG_ROUTER_VERSION=0.3.2
RUN python -m venv /opt/graft && /opt/graft/bin/pip install --no-cache-dir "sglang-router==${SGLANG_ROUTER_VERSION}"

FROM python-base AS sglang-router
COPY --from=sglang-router-build /opt/graft /opt/graft
USER 10001:10001
EXPOSE 30000 29000
CMD ["python", "-m", "sglang_router.launch_router", "--help"]


FROM ${CPU_PYTHON_IMAGE} AS worker-cpu-build
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY requirements requirements
RUN python -m venv /opt/graft \
    && /opt/graft/bin/pip install --no-cache-dir --extra-index-url "${TORCH_INDEX_URL}" -r requirements/cpu-engine.txt \
    && /opt/graft/bin/pip install --no-cache-dir --no-deps -r requirements/cpu-engine-nodeps.txt
COPY pyproject.toml setup.py README.md LICENSE ./
COPY sglang_ext sglang_ext
COPY shell_router shell_router
COPY launch launch
COPY graft graft
COPY cfgs cfgs
RUN /opt/graft/bin/pip install --no-cache-dir --no-deps .

FROM ${CPU_PYTHON_IMAGE} AS worker-cpu
# SGLang compiles a little C++ at start.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini build-essential libnuma1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home graft
COPY --from=worker-cpu-build /opt/graft /opt/graft
ENV PATH=/opt/graft/bin:$PATH PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 30000 8998
ENTRYPOINT ["tini", "--"]
CMD ["python", "-m", "sglang_ext.cpu.serve", "--help"]


FROM ${CUDA_IMAGE} AS worker
# libibverbs and librdmacm are UCX's way to RDMA cards.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        tini python3.12-venv python3.12-dev build-essential libnuma1 libibverbs1 librdmacm1t64 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home graft
ENV PATH=/opt/graft/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /src
# The engine first, in a layer of its own: it is large and changes seldom.
COPY pyproject.toml setup.py README.md LICENSE ./
RUN python3.12 -m venv /opt/graft \
    && pip install --no-cache-dir ".[gpu]" \
    && pip uninstall --yes graft-moa
COPY sglang_ext sglang_ext
COPY shell_router shell_router
COPY launch launch
COPY graft graft
COPY cfgs cfgs
RUN pip install --no-cache-dir --no-deps .
WORKDIR /home/graft
USER 10001:10001
EXPOSE 30000 8998
ENTRYPOINT ["tini", "--"]
CMD ["python", "-m", "sglang.launch_server", "--help"]
