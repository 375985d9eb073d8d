"""The few calls of MLflow's REST API that a training process makes.

Importing `mlflow` costs 3 s and 150 MB in every process that trains, and its client keeps a caller waiting
for minutes while the server is away; these calls need only `requests` and answer at once, one way or the other.
"""

import json
from typing import Any
from urllib.parse import urlsplit

import requests
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random

from genmodels.errors import AccessError, GenmodelsError, UnavailableError
from genmodels.settings import settings

TIMEOUT_SECONDS = (5, 60)  # to connect, to answer


class MissingEntity(GenmodelsError):
    """MLflow has no such run, experiment or model."""


class EntityExists(GenmodelsError):
    """MLflow already has an experiment or a model of that name."""


class WriteConflict(UnavailableError):
    """Two requests wrote the same row at once, and MLflow turned this one away: it looks, then inserts."""


class TrackingServer:
    """MLflow's server of the settings; each request is repeated as `retrying` says, and without it only when it met
    another that wrote the same. Not safe to share between threads."""

    def __init__(self, retrying: Retrying | None = None):
        self.url = settings().mlflow_url.rstrip("/")
        self.session = requests.Session()
        if password := settings().mlflow_password.get_secret_value():
            self.session.auth = (settings().mlflow_username, password)
        self._retrying = retrying or Retrying(
            retry=retry_if_exception_type(WriteConflict),
            wait=wait_random(0, 0.5),
            stop=stop_after_attempt(5),
            reraise=True,
        )

    def get(self, call: str, **query: Any) -> dict[str, Any]:
        """The JSON answer of GET api/2.0/mlflow/CALL; raises as `send` does."""
        return self.send("GET", f"mlflow/{call}", params=query).json()

    def post(self, call: str, **message: Any) -> dict[str, Any]:
        """The JSON answer of POST api/2.0/mlflow/CALL; raises as `send` does."""
        return self.send("POST", f"mlflow/{call}", json=message).json()

    def put_artifact(self, folder: str, name: str, data: bytes) -> None:
        """Write one file of a run; `folder` is the artifact address that the run or the server gave."""
        self.send("PUT", f"mlflow-artifacts/artifacts/{_proxied(folder)}/{name}", data=data)

    def get_artifact(self, folder: str, name: str) -> bytes:
        """Read one file of a run or a model."""
        return self.send("GET", f"mlflow-artifacts/artifacts/{_proxied(folder)}/{name}").content

    def send(self, method: str, path: str, **arguments: Any) -> requests.Response:
        """The answer to one request. Raises UnavailableError if it may succeed later, AccessError if the server
        refuses us, MissingEntity or EntityExists, else GenmodelsError with the server's own words."""
        return self._retrying(self._send, method, path, **arguments)

    def _send(self, method: str, path: str, **arguments: Any) -> requests.Response:
        try:
            answer = self.session.request(
                method, f"{self.url}/api/2.0/{path}", timeout=TIMEOUT_SECONDS, allow_redirects=False, **arguments
            )
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            raise UnavailableError(
                f"The MLflow server at {self.url} does not answer; start it with `genmodels up` or set "
                "GENMODELS_MLFLOW_URL."
            ) from error
        if not answer.ok:
            raise _refusal(self.url, path, answer)
        return answer


def _refusal(url: str, path: str, answer: requests.Response) -> GenmodelsError:
    try:
        body = answer.json()
    except json.JSONDecodeError:
        body = {}
    code, message = body.get("error_code", ""), body.get("message", answer.reason)
    if answer.status_code in {401, 403}:
        return AccessError(f"The MLflow server at {url} refused the credentials for {path} ({answer.status_code}).")
    if code == "RESOURCE_DOES_NOT_EXIST":
        return MissingEntity(f"MLflow at {url}: {message}")
    if code == "RESOURCE_ALREADY_EXISTS":
        return EntityExists(f"MLflow at {url}: {message}")
    if "UNIQUE constraint failed" in message or "UniqueViolation" in message:  # SQLite's words, PostgreSQL's
        return WriteConflict(f"The MLflow server at {url} met another writer on {path}: {message}")
    if answer.status_code >= 500 or answer.status_code == 429:
        return UnavailableError(f"The MLflow server at {url} failed on {path} ({answer.status_code}): {message}")
    return GenmodelsError(f"The MLflow server at {url} refused {path} ({answer.status_code}): {message}")


def _proxied(folder: str) -> str:
    """The path behind `mlflow-artifacts:/...`, which is how the server names what it stores for its clients."""
    address = urlsplit(folder)
    if address.scheme != "mlflow-artifacts":
        raise AccessError(
            f"MLflow keeps this run's files at {folder}; start its server with --artifacts-destination, so that it "
            "takes them itself and no client needs the store's credentials."
        )
    return address.path.strip("/")
