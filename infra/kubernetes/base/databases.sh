#!/bin/sh
# Run once by the postgres image when its data folder is empty: a database and a user each for Prefect and MLflow.
set -eu
psql --username postgres --set ON_ERROR_STOP=1 \
    --set prefect="$PREFECT_DATABASE_PASSWORD" --set mlflow="$MLFLOW_DATABASE_PASSWORD" <<'SQL'
CREATE USER prefect PASSWORD :'prefect';
CREATE DATABASE prefect OWNER prefect;
CREATE USER mlflow PASSWORD :'mlflow';
CREATE DATABASE mlflow OWNER mlflow;
\connect prefect
CREATE EXTENSION pg_trgm;
SQL
