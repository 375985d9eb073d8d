"""S3 objects of one bucket: whole or not at all, with their SHA-256 kept beside them and checked on the way back.

Requests that fail for a passing reason are repeated inside; what reaches the caller is an error for people.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from boto3.exceptions import RetriesExceededError, S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ResponseStreamingError,
)
from pydantic import BaseModel
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from genmodels.errors import AccessError, DataError, GenmodelsError, SpecError, UnavailableError
from genmodels.settings import Settings, settings
from genmodels.storage.files import new_file

M = TypeVar("M", bound=BaseModel)

REFUSED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "403"}
FULL = {"InsufficientStorage", "XMinioStorageFull", "QuotaExceeded", "507"}
TRANSFER = TransferConfig(multipart_threshold=16 << 20, multipart_chunksize=16 << 20, max_concurrency=4)


class MissingObject(GenmodelsError):
    """There is no object under that key."""


@dataclass(frozen=True)
class ObjectInfo:
    """One line of a listing; size in bytes."""

    key: str
    size: int
    modified: datetime


@dataclass(frozen=True)
class Upload:
    """An upload in parts that was begun and neither ended nor given up."""

    key: str
    id: str
    begun: datetime


class Traffic:
    """Bytes of objects that went over a client's connections, repeated requests included. Safe to share."""

    def __init__(self, client: Any):
        self.sent = self.received = 0
        self._lock = Lock()
        client.meta.events.register("before-send.s3", self._request)
        client.meta.events.register("after-call.s3", self._answer)

    def _request(self, request: Any, **_: object) -> None:
        with self._lock:
            self.sent += int(request.headers.get("Content-Length", 0))

    def _answer(self, http_response: Any, model: Any, **_: object) -> None:
        if not model.name.startswith("Head"):  # which tells the length of what it does not send
            with self._lock:
                self.received += int(http_response.headers.get("Content-Length", 0))


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of `s3://bucket/key`; raises SpecError for anything else."""
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise SpecError(f"{uri!r} is not an object's address; expected s3://bucket/key.")
    return bucket, key


class ObjectStore:
    """The objects of one bucket. Safe to share between threads, not between processes: call `store()` in each."""

    def __init__(self, settings: Settings):
        self.bucket = settings.bucket
        self.endpoint = settings.s3_endpoint
        self.client: Any = Session().client(
            "s3",
            endpoint_url=settings.s3_endpoint,
            region_name=settings.s3_region,
            # Without keys of ours botocore finds a cluster's own (instance role, web identity).
            aws_access_key_id=settings.s3_access_key.get_secret_value() or None,
            aws_secret_access_key=settings.s3_secret_key.get_secret_value() or None,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                retries={"mode": "standard", "total_max_attempts": 8},
                connect_timeout=5,
                read_timeout=60,
                max_pool_connections=32,
                # Not every S3 server takes checksum trailers; content is checked by our own SHA-256.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

        self.traffic = Traffic(self.client)

    def create_bucket(self) -> None:
        """Create the bucket unless it is there."""
        client = self.client
        there = (client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists)
        with self._errors_for_people(self.bucket, ""), suppress(*there):
            client.create_bucket(Bucket=self.bucket)

    def uri(self, key: str) -> str:
        """The object's address, s3://bucket/key."""
        return f"s3://{self.bucket}/{key}"

    def get(self, key: str) -> bytes:
        """The object's bytes; raises MissingObject."""
        return self._get(self.bucket, key)

    def read(self, uri: str) -> bytes:
        """The bytes of an object of any bucket, by its s3:// address; raises MissingObject."""
        return self._get(*split_uri(uri))

    def put(self, key: str, data: bytes, *, if_absent: bool = False, content_type: str | None = None) -> bool:
        """Write the object. With `if_absent` an object that is already there stays as it is and the answer is False,
        also if it was an earlier, interrupted try of this very call that wrote it."""
        extra: dict[str, str] = {"ContentType": content_type} if content_type else {}
        if if_absent:
            extra["IfNoneMatch"] = "*"
        metadata = {"sha256": hashlib.sha256(data).hexdigest()}
        with self._errors_for_people(self.bucket, key):
            try:
                put = _repeated(if_=_is_conflict)
                put(self.client.put_object, Bucket=self.bucket, Key=key, Body=data, Metadata=metadata, **extra)
            except ClientError as error:
                if if_absent and _code(error) in {"PreconditionFailed", "412"}:
                    return False
                raise
        return True

    def upload(self, path: Path | str, key: str) -> None:
        """Write a file's content, in parts where it is big; the object appears when all of it is there."""
        with open(path, "rb") as file, self._errors_for_people(self.bucket, key):
            metadata = {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}
            file.seek(0)
            self.client.upload_fileobj(file, self.bucket, key, ExtraArgs={"Metadata": metadata}, Config=TRANSFER)

    def download(self, key: str, path: Path | str, *, sha256: str | None = None) -> None:
        """Copy the object into a file, which appears under its name when it is whole. Raises MissingObject, DataError
        if its SHA-256 is not `sha256` (by default that of what was uploaded), AccessError if the disk is full."""
        path = Path(path)
        with self._errors_for_people(self.bucket, key), new_file(path) as part:
            expected = sha256 or self._head(key)["Metadata"].get("sha256")
            self.client.download_file(self.bucket, key, str(part), Config=TRANSFER)
            if expected:
                with open(part, "rb") as file:
                    _check(self.uri(key), hashlib.file_digest(file, "sha256").hexdigest(), expected)

    def exists(self, key: str) -> bool:
        """Whether there is an object under that key."""
        try:
            with self._errors_for_people(self.bucket, key):
                self._head(key)
        except MissingObject:
            return False
        return True

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """The objects whose keys begin with `prefix`, in the order of their keys."""
        with self._errors_for_people(self.bucket, prefix):
            for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
                for entry in page.get("Contents", []):
                    yield ObjectInfo(key=entry["Key"], size=entry["Size"], modified=entry["LastModified"])

    def delete(self, keys: Iterable[str]) -> None:
        """Remove the objects; those that are not there are no error."""
        keys = list(keys)
        for first in range(0, len(keys), 1000):
            objects = [{"Key": key} for key in keys[first : first + 1000]]
            with self._errors_for_people(self.bucket, objects[0]["Key"]):
                answer = self.client.delete_objects(Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True})
            for failure in answer.get("Errors", []):
                raise AccessError(f"{self.uri(failure['Key'])} was not deleted: {failure.get('Message', 'refused')}.")

    def uploads(self) -> Iterator[Upload]:
        """The uploads in parts that are under way, or that somebody left."""
        with self._errors_for_people(self.bucket, ""):
            for page in self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket):
                for entry in page.get("Uploads", []):
                    yield Upload(key=entry["Key"], id=entry["UploadId"], begun=entry["Initiated"])

    def abort(self, upload: Upload) -> None:
        """Give up an upload; its parts are removed. One that has ended is no error."""
        ended = self.client.exceptions.NoSuchUpload
        with self._errors_for_people(self.bucket, upload.key), suppress(ended):
            self.client.abort_multipart_upload(Bucket=self.bucket, Key=upload.key, UploadId=upload.id)

    def get_record(self, key: str, type: type[M]) -> M | None:
        """The JSON object parsed as `type`, or None if there is none."""
        try:
            return type.model_validate_json(self.get(key))
        except MissingObject:
            return None

    def put_record(self, key: str, model: BaseModel, *, if_absent: bool = False) -> bool:
        """Write a record as JSON; the answer is that of `put`."""
        data = model.model_dump_json(indent=1).encode()
        return self.put(key, data, if_absent=if_absent, content_type="application/json")

    def _get(self, bucket: str, key: str) -> bytes:
        with self._errors_for_people(bucket, key):
            # botocore repeats a request only until the first byte of the answer's body.
            data, expected = _repeated(if_=_is_broken_stream)(self._get_once, bucket, key)
            if expected:
                _check(f"s3://{bucket}/{key}", hashlib.sha256(data).hexdigest(), expected)
            return data

    def _get_once(self, bucket: str, key: str) -> tuple[bytes, str | None]:
        answer = self.client.get_object(Bucket=bucket, Key=key)
        return answer["Body"].read(), answer["Metadata"].get("sha256")

    def _head(self, key: str) -> dict[str, Any]:
        return self.client.head_object(Bucket=self.bucket, Key=key)

    def _bucket_exists(self, bucket: str) -> bool:
        try:
            self.client.head_bucket(Bucket=bucket)
        except ClientError as error:
            return _code(error) not in {"404", "NoSuchBucket"}
        return True

    @contextmanager
    def _errors_for_people(self, bucket: str, key: str) -> Iterator[None]:
        try:
            yield
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise AccessError(
                f"There are no credentials for the object store at {self.endpoint}; start the stack with "
                "`genmodels up` or set GENMODELS_S3_ACCESS_KEY and GENMODELS_S3_SECRET_KEY."
            ) from error
        except S3UploadFailedError as error:  # raised in the place of the ClientError that is its context
            cause = error.__context__
            raise (self._refusal(bucket, key, cause) if isinstance(cause, ClientError) else self._silence()) from error
        except ClientError as error:
            raise self._refusal(bucket, key, error) from error
        except (BotoCoreError, RetriesExceededError) as error:
            raise self._silence() from error

    def _silence(self) -> UnavailableError:
        return UnavailableError(
            f"The object store at {self.endpoint} does not answer; start it with `genmodels up` or set "
            "GENMODELS_S3_ENDPOINT."
        )

    def _refusal(self, bucket: str, key: str, error: ClientError) -> GenmodelsError:
        code, status = _code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code == "NoSuchBucket" or (code == "404" and not self._bucket_exists(bucket)):
            return AccessError(
                f"There is no bucket {bucket!r} at {self.endpoint}; create it with `genmodels up` or set "
                "GENMODELS_BUCKET."
            )
        if code in {"NoSuchKey", "404"}:
            return MissingObject(f"There is no object s3://{bucket}/{key}.")
        if code in REFUSED:
            return AccessError(
                f"The object store at {self.endpoint} refused the credentials for s3://{bucket} ({code}); check "
                "GENMODELS_S3_ACCESS_KEY and GENMODELS_S3_SECRET_KEY."
            )
        if code in FULL or status == 507:
            return AccessError(
                f"The object store at {self.endpoint} is full ({code}); free some of its disk and repeat."
            )
        if status >= 500 or code in {"SlowDown", "RequestTimeout"}:
            return UnavailableError(
                f"The object store at {self.endpoint} failed on s3://{bucket}/{key} ({code}); its disk may be full: "
                "free some space, or look into its log."
            )
        message = error.response.get("Error", {}).get("Message", "no reason given")
        return AccessError(f"The object store at {self.endpoint} refused s3://{bucket}/{key}: {code}, {message}.")


@cache
def store() -> ObjectStore:
    """The store of this process's settings."""
    return ObjectStore(settings())


os.register_at_fork(after_in_child=store.cache_clear)  # a child must not share the parent's connections


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _is_conflict(error: BaseException) -> bool:
    return isinstance(error, ClientError) and _code(error) == "ConditionalRequestConflict"


def _is_broken_stream(error: BaseException) -> bool:
    return isinstance(error, (ResponseStreamingError, IncompleteReadError))


def _repeated(if_: Any) -> Retrying:
    return Retrying(
        retry=retry_if_exception(if_),
        stop=stop_after_attempt(5),
        wait=wait_random_exponential(0.2, max=5),
        reraise=True,
    )


def _check(name: str, found: str, expected: str) -> None:
    if found != expected:
        raise DataError(f"{name} is damaged: its SHA-256 is {found}, expected {expected}; remove it and repeat.")
