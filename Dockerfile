# syntax=docker/dockerfile:1
# The package index serves PyTorch with CUDA; for the CPU build (an image of 1 GB instead of 6) pass
# the address of PyTorch's CPU index:  docker build --build-arg TORCH_INDEX=... .
#
# Made to run with a read-only root, as any user: only /tmp and the state are written to.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
COPY requirements.lock .
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --disable-pip-version-check -c requirements.lock hatchling
COPY pyproject.toml README.md ./
COPY stream_forecaster stream_forecaster
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheel .

FROM ${PYTHON_IMAGE} AS environment
ARG TORCH_INDEX=""
WORKDIR /src
# pip stays out of it: the base image's installs into it.
RUN python -m venv --without-pip /opt/venv
COPY requirements.lock .
# The largest part first, so that a change of the code does not install it again. The lock is a
# constraint here: what only tests and lint need stays out of the image.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/venv/bin/python install --disable-pip-version-check -c requirements.lock \
    ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch
COPY --from=wheel /wheel /wheel
# Libraries ship their own tests and C++ headers, hundreds of megabytes.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/venv/bin/python install --disable-pip-version-check -c requirements.lock \
    /wheel/*.whl \
    && rm -rf /opt/venv/lib/python3*/site-packages/torch/include \
    && find /opt/venv/lib -type d \( -name tests -o -name test \) -prune -exec rm -rf {} +
# Loops over keys are compiled here, once: a container whose root is read-only could not keep them.
# For any processor of this architecture, and for x86-64 with AVX2, too: the network takes half as long.
ENV NUMBA_CPU_FEATURES="" NUMBA_CACHE_DIR=/opt/compiled
RUN for cpu in generic $(test "$(uname -m)" != x86_64 || echo x86-64-v3); do NUMBA_CPU_NAME=$cpu \
    /opt/venv/bin/python -c "from stream_forecaster import cli; cli.compile_on_all_cores()" \
    || exit; done

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="stream-forecaster" \
      org.opencontainers.image.description="Calibrated forecasts for every key of a Kafka topic, exactly once" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 forecaster \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp forecaster \
    && install -d -o forecaster -g forecaster /var/lib/stream-forecaster
COPY --from=environment /opt/venv /opt/venv
COPY --from=environment /opt/compiled /opt/compiled
# One process per core: a second thread of the network would only take another member's core.
# Inside a container loopback reaches nobody.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    OMP_NUM_THREADS=1 \
    NUMBA_CPU_NAME=generic \
    NUMBA_CPU_FEATURES="" \
    NUMBA_CACHE_DIR=/tmp/compiled \
    STREAM_FORECASTER__HTTP__HOST=0.0.0.0 \
    STREAM_FORECASTER__HTTP__PORT=8080
USER 10001:10001
VOLUME /var/lib/stream-forecaster
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['STREAM_FORECASTER__HTTP__PORT'] + '/livez', timeout=4)"]
# numba reads what was compiled only from where it could write, so that is copied (a few MB).
ENTRYPOINT ["/bin/sh", "-c", "cp -rT /opt/compiled \"$NUMBA_CACHE_DIR\" 2>/dev/null; grep -q ' avx2 .* bmi2 ' /proc/cpuinfo && export NUMBA_CPU_NAME=x86-64-v3; exec stream-forecaster \"$@\"", "stream-forecaster"]
CMD ["run"]
