# MLflow's server with what upstream's image lacks: S3, PostgreSQL and the login. Without torch, so it is small.
#
#   docker build --file docker/mlflow.Dockerfile --tag genmodels-mlflow:3.17.2 .

FROM python:3.11-slim-bookworm AS build
COPY requirements.lock /build/
RUN sed --quiet '/^uv==/,/[^\\]$/p' /build/requirements.lock > /build/uv.lock \
    && pip install --no-cache-dir --require-hashes --requirement /build/uv.lock \
    && uv venv /opt/mlflow \
    && uv pip install --no-cache --compile-bytecode --python /opt/mlflow/bin/python --constraint /build/requirements.lock \
        "mlflow[auth]" boto3 "psycopg[binary]"

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/mlflow mlflow \
    && install --directory --owner=mlflow --group=mlflow /var/lib/mlflow
COPY --from=build /opt/mlflow /opt/mlflow
ENV PATH=/opt/mlflow/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /var/lib/mlflow
EXPOSE 5000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:5000/health', timeout=4)"]
CMD ["mlflow", "server", "--host", "0.0.0.0", "--port", "5000"]
