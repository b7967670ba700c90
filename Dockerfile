# The sidecar and the nightly verifier: one image, never root. See docker-compose.yml.
#
# Nothing here reaps orphans as process 1: start it with `init: true`, or `docker run --init`.

FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY requirements/build.txt requirements/runtime.txt requirements/
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes -r requirements/build.txt \
    && python -m venv /opt/waly \
    && /opt/waly/bin/pip install --require-hashes --only-binary :all: -r requirements/runtime.txt
COPY pyproject.toml README.md LICENSE ./
COPY queries queries
COPY waly_cdc waly_cdc
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
    && /opt/waly/bin/pip install --no-deps /dist/*.whl \
    && /opt/waly/bin/waly version

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="waly-cdc" \
      org.opencontainers.image.licenses="Apache-2.0"
# PostgreSQL, which restore drills start, refuses root, and asks for an account with a name.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin waly \
    && install -d -o waly -g waly -m 0700 /archive /reports /scratch
COPY --from=build /opt/waly /opt/waly
COPY --chmod=0755 docker/entrypoint.sh /usr/local/bin/waly-entrypoint
COPY --chmod=0755 docker/verify-nightly.sh /usr/local/bin/verify-nightly
ENV PATH=/opt/waly/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    WALY_ARCHIVE=/archive
WORKDIR /archive
USER 10001:10001
ENTRYPOINT ["waly"]
CMD ["--help"]
