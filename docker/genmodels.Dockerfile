# The one image of what runs our code: Ray head and workers, and the Prefect worker. The servers of Prefect and S3 run
# from it too, in the versions of the lock.
#
#   docker build --file docker/genmodels.Dockerfile --tag genmodels:0.1.0 .

FROM python:3.11-slim-bookworm AS build
WORKDIR /build
COPY requirements.lock pyproject.toml README.md ./
COPY genmodels genmodels
COPY flows flows
# The lock's versions, and its hashes, which uv checks for constraints too; what only developers need stays out.
RUN sed --quiet '/^uv==/,/[^\\]$/p' requirements.lock > uv.lock \
    && pip install --no-cache-dir --require-hashes --requirement uv.lock \
    && uv venv /opt/genmodels \
    && uv pip install --no-cache --compile-bytecode --python /opt/genmodels/bin/python \
        --constraint requirements.lock ".[gpu]"

FROM python:3.11-slim-bookworm
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/genmodels genmodels \
    && install --directory --owner=genmodels --group=genmodels /var/lib/genmodels /cache /data
COPY --from=build /opt/genmodels /opt/genmodels
COPY infra/prefect.yaml /opt/genmodels/prefect.yaml
ENV PATH=/opt/genmodels/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    GENMODELS_HOME=/var/lib/genmodels \
    PREFECT_WORKER_WEBSERVER_HOST=0.0.0.0 \
    PREFECT_WORKER_WEBSERVER_PORT=8080
USER 10001:10001
WORKDIR /var/lib/genmodels
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health', timeout=4)"]
ENTRYPOINT ["tini", "--"]
CMD ["prefect", "worker", "start", "--pool", "genmodels", "--type", "process", "--with-healthcheck"]
