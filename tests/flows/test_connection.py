"""The command line when Prefect does not answer, fails, or refuses the login; in processes of its own."""

import json
from collections.abc import Iterator

import pytest
from fault_proxy import FaultProxy
from test_cli import NO_SERVERS
from test_cli import genmodels as ended

from genmodels.errors import AccessError, UnavailableError
from genmodels.settings import Settings, settings
from genmodels.stack.local import LocalStack

ASKING = [["alerts"], ["serve"], ["retrain", "progressive_gan", "--dataset", "digits"]]
LOGIN = "ops:right"


@pytest.fixture(scope="module")
def guarded(stack: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prefect beside the session's, which asks for a login."""
    own = LocalStack(tmp_path_factory.mktemp("guarded"))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GENMODELS_PREFECT_AUTH_STRING", LOGIN)
            address = own.up(["prefect"]).prefect_api_url
        yield address
    finally:
        own.down()
        settings.cache_clear()


def refusals(**environment: str) -> set[tuple[int, str]]:
    """How the commands end, and what they say."""
    done = [ended(*arguments, **environment) for arguments in ASKING]
    return {(process.returncode, process.stderr.strip()) for process in done}


def test_without_a_server_each_command_says_so_in_one_sentence():
    says = f"genmodels: The Prefect server at {NO_SERVERS['GENMODELS_PREFECT_API_URL']} does not answer; start it with "
    says += "`genmodels up` or set GENMODELS_PREFECT_API_URL, and give the command again: "
    says += "a run goes on from where it was."
    assert refusals(**NO_SERVERS) == {(UnavailableError.exit_code, says)}


def test_a_wrong_login_is_refused_in_one_sentence_and_the_right_one_is_not(guarded: str):
    says = f"genmodels: The Prefect server at {guarded} refused the login; check GENMODELS_PREFECT_AUTH_STRING."
    address = {"GENMODELS_PREFECT_API_URL": guarded}
    assert refusals(**address, GENMODELS_PREFECT_AUTH_STRING="ops:wrong") == {(AccessError.exit_code, says)}
    published = ended("alerts", "--json", **address, GENMODELS_PREFECT_AUTH_STRING=LOGIN)
    assert published.returncode == 0, published.stderr
    assert set(json.loads(published.stdout).values()) == {"created"}


def test_a_server_that_fails_says_so_in_one_sentence(stack: Settings):
    line = FaultProxy(stack.prefect_api_url)
    line.busy = 1.0
    says = f"genmodels: The Prefect server at {line.url} failed with status 503; look at its log, and give the command "
    says += "again: a run goes on from where it was."
    environment = {"GENMODELS_PREFECT_API_URL": line.url, "PREFECT_CLIENT_MAX_RETRIES": "0"}
    assert refusals(**environment) == {(UnavailableError.exit_code, says)}
    line.close()
