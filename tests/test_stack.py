"""The local stack, on real servers: what it promises to those who start, stop, kill and look at it."""

import json
import os
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest
import requests
from ray.job_submission import JobStatus, JobSubmissionClient

from genmodels.errors import AccessError, SpecError, UnavailableError
from genmodels.settings import Settings, settings
from genmodels.stack.local import LocalStack
from genmodels.stack.ports import USUAL_PORTS
from genmodels.stack.services import Stack
from genmodels.stack.supervisor import processes_of
from genmodels.storage.objects import ObjectStore, store
from genmodels.tracking.rest import TrackingServer

LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def family(stack: LocalStack) -> list[psutil.Process]:
    """All processes of a stack, found by their parents and by their environment."""
    supervisor = psutil.Process(stack._supervisor().supervisor.getPID())
    return list({supervisor, *supervisor.children(recursive=True), *processes_of(stack.home)})


def pids(stack: LocalStack) -> dict[str, int]:
    return {p["name"]: p["pid"] for p in stack._supervisor().supervisor.getAllProcessInfo()}


def secrets_of(stack: LocalStack) -> list[str]:
    written = stack.read()
    assert written is not None
    return [written.s3_access_key, written.s3_secret_key, written.ray_token_path.read_text()]


def objects(stack: Stack) -> ObjectStore:
    """A client of a stack that is not the session's."""
    return ObjectStore(Settings(**stack.model_dump()))


def test_every_service_answers_where_the_settings_say(stack: Settings) -> None:
    services = {service.name: service for service in LocalStack().status()}
    assert {name: service.state for name, service in services.items()} == dict.fromkeys(
        ("s3", "mlflow", "prefect", "ray"), "running"
    )
    assert services["s3"].address == stack.s3_endpoint
    assert services["mlflow"].address == stack.mlflow_url
    assert services["prefect"].address + "/api" == stack.prefect_api_url
    assert services["ray"].address == stack.ray_address
    assert all(Path(service.log).stat().st_size for service in services.values())


def test_up_again_changes_nothing(stack: Settings) -> None:
    before = pids(LocalStack()), LocalStack().read()
    LocalStack().up()
    assert (pids(LocalStack()), LocalStack().read()) == before


def test_nothing_listens_off_the_loopback_interface(stack: Settings) -> None:
    listening = []
    for process in family(LocalStack()):
        with suppress(psutil.NoSuchProcess):
            listening += [c.laddr for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert len(listening) > 10
    assert {address.ip for address in listening} <= LOOPBACK


def test_secrets_are_on_no_command_line_and_in_no_log(stack: Settings) -> None:
    home = LocalStack()
    texts = {}
    for process in family(home):
        with suppress(psutil.NoSuchProcess):
            texts[f"process {process.name()} {process.pid}"] = " ".join(process.cmdline())
    for path in [*(home.home / "logs").iterdir(), *(home.home / "ray/session_latest/logs").glob("*.*")]:
        texts[path.name] = path.read_text(errors="replace")
    assert len(texts) > 20
    told = [
        (place, line.replace(secret, "(the secret)"))
        for secret in secrets_of(home)
        for place, text in texts.items()
        for line in text.splitlines()
        if secret in line
    ]
    assert not told


def test_files_with_secrets_are_for_their_owner_alone(stack: Settings) -> None:
    home = LocalStack()
    holding = []
    for path in home.home.iterdir():
        if path.is_file() and any(secret in path.read_text(errors="replace") for secret in secrets_of(home)):
            holding.append(path)
    assert {path.name for path in holding} == {"stack.json", "s3.json", "ray.token", "supervisord.conf"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in holding} == {0o600}
    assert stat.S_IMODE(home.home.stat().st_mode) == 0o700


def test_a_job_finds_the_stack_it_runs_in(stack: Settings) -> None:
    client = JobSubmissionClient(stack.ray_address)
    job = client.submit_job(entrypoint="cd / && python -m genmodels status --json")
    while not client.get_job_status(job).is_terminal():
        time.sleep(0.2)
    log = client.get_job_logs(job)
    assert client.get_job_status(job) == JobStatus.SUCCEEDED, log
    seen = json.loads(log.splitlines()[-1])
    assert seen["home"] == str(stack.home)
    assert {service["state"] for service in seen["services"].values()} == {"running"}


@pytest.fixture
def own(tmp_path: Path) -> Iterator[LocalStack]:
    """A stack beside the session's, in a home whose path is too long for the names of sockets."""
    stack = LocalStack(tmp_path / ("a_long_name_" * 8))
    yield stack
    stack.down()
    settings.cache_clear()


def test_down_and_up_lose_no_data_and_leave_no_process(own: LocalStack) -> None:
    first = own.up(["s3", "ray"])
    contents = {f"folder/{size}": os.urandom(size) for size in (0, 1, 5_000, 9_000_000)}
    for key, content in contents.items():
        objects(first).put(key, content)
    processes = family(own)
    assert len(processes) > 8
    assert own.down()

    assert not [process for process in processes if process.is_running()]
    assert not list(processes_of(own.home))
    assert not [path for path in Path("/tmp").glob("seaweedfs-*") for p in first.ports.values() if str(p) in path.name]
    assert [service.state for service in own.status()] == ["stopped"] * 4
    assert not own.down()

    again = own.up(["s3"])
    assert again == first
    assert {key: objects(again).get(key) for key in contents} == contents


def test_a_port_that_is_taken_is_replaced_and_the_data_are_found_behind_the_new_one(
    own: LocalStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = own.up(["s3"])
    objects(first).put("key", b"value")
    own.down()
    with ExitStack() as taken:
        monkeypatch.setitem(USUAL_PORTS, "s3", first.ports["s3"])
        for name in ("s3", "master"):
            taken.enter_context(socket.create_server(("127.0.0.1", first.ports[name])))
        second = own.up(["s3"])
    assert second.ports["s3"] != first.ports["s3"]
    assert second.ports["master"] != first.ports["master"]
    assert second.ports["volume"] == first.ports["volume"]
    assert objects(second).get("key") == b"value"


def test_a_service_that_dies_comes_back_with_its_data(own: LocalStack) -> None:
    stack = own.up(["s3"])
    objects(stack).put("key", b"value")
    died = pids(own)["s3"]
    os.kill(died, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(died)] if psutil.pid_exists(died) else [], timeout=10)
    own.up(["s3"])
    assert pids(own)["s3"] != died
    assert objects(stack).get("key") == b"value"


def test_up_takes_over_from_a_supervisor_that_was_killed(own: LocalStack) -> None:
    stack = own.up(["s3"])
    objects(stack).put("key", b"value")
    orphans = family(own)
    os.kill(own._supervisor().supervisor.getPID(), signal.SIGKILL)
    again = own.up(["s3"])
    assert not [process for process in orphans if process.is_running()]
    assert again == stack
    assert objects(again).get("key") == b"value"


def test_a_service_that_cannot_start_is_named_with_the_end_of_its_log(own: LocalStack) -> None:
    own.up(["s3"])
    own.down()
    (own.home / "s3/filerldb2").rename(own.home / "away")
    (own.home / "s3/filerldb2").write_text("not a folder")
    with pytest.raises(UnavailableError, match=r"SeaweedFS.*did not come up.*s3\.log ends:") as refusal:
        own.up(["s3"])
    log = own.log("s3").read_text()
    assert "filerldb2" in log, "of a retry that met the port of the one before, not always at the end"
    assert str(refusal.value).endswith("".join(log.splitlines(keepends=True)[-5:]))


def test_a_home_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AccessError, match="set GENMODELS_HOME"):
        LocalStack(tmp_path / "file/home").up()


MLFLOW_PASSWORD = "pass word, 'quoted' \\ and 100%"
PREFECT_LOGIN = f"ops:{MLFLOW_PASSWORD}"
LOGINS = {"prefect_auth_string": PREFECT_LOGIN, "mlflow_password": MLFLOW_PASSWORD}


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ([], "GENMODELS_PREFECT_AUTH_STRING=USER:PASSWORD and GENMODELS_MLFLOW_PASSWORD=PASSWORD"),
        (["mlflow_password"], "GENMODELS_PREFECT_AUTH_STRING=USER:PASSWORD, or leave"),
        (["prefect_auth_string"], "GENMODELS_MLFLOW_PASSWORD=PASSWORD, or leave"),
    ],
)
@pytest.mark.parametrize("bind", ["0.0.0.0", "192.0.2.1"])
def test_nothing_is_started_for_other_machines_without_logins(
    own: LocalStack, configure: Callable[..., None], given: list[str], missing: str, bind: str
) -> None:
    configure(bind=bind, **{name: LOGINS[name] for name in given})
    with pytest.raises(SpecError, match=f"On {bind} the servers could be reached .* set {missing}"):
        own.up()
    assert not list(processes_of(own.home))
    assert {path.name for path in own.home.iterdir()} == {"lock"}


def test_a_login_that_cannot_be_passed_on_is_refused_unseen(own: LocalStack, configure: Callable[..., None]) -> None:
    configure(**LOGINS | {"mlflow_password": 'a"b"c'})
    with pytest.raises(SpecError, match=r"^MLFLOW_AUTH_ADMIN_PASSWORD has a quotation mark or a line break"):
        own.up()
    assert not own.file.exists()


def test_with_logins_every_public_port_asks_for_them_and_no_other_port_is_public(
    own: LocalStack, configure: Callable[..., None]
) -> None:
    configure(bind="0.0.0.0", **LOGINS)
    names = ["s3", "mlflow", "prefect"]  # Ray asks for its token on every interface
    stack = own.up(names)
    public = {stack.ports[name]: name for name in ("mlflow", "prefect")}
    listening = set()
    for process in family(own):
        with suppress(psutil.NoSuchProcess):
            listening |= {c.laddr for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert {public.get(address.port, address) for address in listening if address.ip not in LOOPBACK} == {
        *public.values()
    }

    prefect, mlflow = stack.prefect_api_url, stack.mlflow_url
    asked = {
        f"{stack.s3_endpoint}/{stack.bucket}": 403,
        f"{stack.s3_endpoint}/{stack.bucket}/key": 403,
        f"{mlflow}/": 401,
        f"{mlflow}/api/2.0/mlflow/experiments/search?max_results=9": 401,
        f"{mlflow}/api/2.0/mlflow-artifacts/artifacts?path=.": 401,
        f"{prefect}/flow_runs/count": 401,
        f"{prefect}/block_documents/filter": 401,
        f"{prefect}/admin/settings": 401,
    }
    for login in (None, ("admin", "password1234")):
        got = {
            url: requests.request("POST" if "filter" in url or "count" in url else "GET", url, auth=login, timeout=60)
            for url in asked
        }
        assert {url: answer.status_code for url, answer in got.items()} == asked
    foreign = Settings(**stack.model_dump() | {"s3_access_key": "foreign", "s3_secret_key": "foreign"})
    with pytest.raises(AccessError, match="refused the credentials"):
        ObjectStore(foreign).get("key")
    for health in (f"{stack.s3_endpoint}/healthz", f"{mlflow}/health", f"{prefect}/health"):
        assert requests.get(health, timeout=60).status_code == 200

    configure(home=str(own.home))  # whoever may read stack.json may come in
    for name in ("bind", *LOGINS):
        os.environ.pop(f"GENMODELS_{name.upper()}")
    settings.cache_clear()
    store().put("key", b"value")
    assert store().get("key") == b"value"
    assert TrackingServer().post("experiments/create", name="ours")
    user, _, password = PREFECT_LOGIN.partition(":")
    assert requests.post(f"{prefect}/flow_runs/count", json={}, auth=(user, password), timeout=60).json() == 0
    assert settings().client_environment()["PREFECT_API_AUTH_STRING"] == PREFECT_LOGIN

    holding = [path for path in own.home.iterdir() if path.is_file() and "100%" in path.read_text(errors="replace")]
    assert {path.name for path in holding} == {"stack.json", "supervisord.conf"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in own.home.iterdir() if path.is_file()} <= {0o600, 0o644}
    assert {stat.S_IMODE(path.stat().st_mode) for path in holding} == {0o600}
    assert not [log.name for log in (own.home / "logs").iterdir() if "pass word" in log.read_text(errors="replace")]
    for process in family(own):
        with suppress(psutil.NoSuchProcess):
            assert "pass word" not in " ".join(process.cmdline())
