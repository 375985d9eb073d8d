"""What goes wrong between the command line and Prefect's server, as errors that are meant for people."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from genmodels.errors import AccessError, GenmodelsError, UnavailableError
from genmodels.settings import settings


@contextmanager
def asking_prefect() -> Iterator[None]:
    """Makes one sentence of a request that Prefect refused or did not answer; all else passes as it is.

    Raises:
        AccessError: if the server refused the login.
        UnavailableError: if it did not answer, or failed.
        GenmodelsError: if it refused what it was asked.
    """
    try:
        yield
    except GenmodelsError:
        raise
    except Exception as error:
        if (failed := _failed_request(error)) is None:
            raise
        raise _explained(failed) from error


def _failed_request(error: BaseException | None) -> httpx.HTTPError | None:
    """The request behind an exception: Prefect wraps some in its own, and what serves deployments in a group."""
    if error is None or isinstance(error, httpx.HTTPError):
        return error
    within = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__ or error.__context__
    return _failed_request(within)


def _explained(error: httpx.HTTPError) -> GenmodelsError:
    server = f"The Prefect server at {settings().prefect_api_url}"
    again = "give the command again: a run goes on from where it was"
    if not isinstance(error, httpx.HTTPStatusError):
        return UnavailableError(
            f"{server} does not answer; start it with `genmodels up` or set GENMODELS_PREFECT_API_URL, and {again}."
        )
    status = error.response.status_code
    if status in {401, 403}:
        return AccessError(f"{server} refused the login; check GENMODELS_PREFECT_AUTH_STRING.")
    if status >= 500 or status in {408, 429}:
        return UnavailableError(f"{server} failed with status {status}; look at its log, and {again}.")
    said = " ".join(error.response.text.split())[:300]
    return GenmodelsError(f"{server} refused {error.request.method} {error.request.url.path} with {status}: {said}")
