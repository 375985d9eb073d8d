"""Steps as Ray jobs, on a real Ray cluster."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fault_proxy import FaultProxy
from PIL import Image

from genmodels.data.catalogue import find
from genmodels.data.manifest import Manifest
from genmodels.data.preprocess import preprocess
from genmodels.errors import AccessError, DataError, GenmodelsError, UnavailableError
from genmodels.settings import Settings, settings
from genmodels.spec import PrepareReport, RegisterReport, RunSpec
from genmodels.steps.jobs import HEADING, RUNNING, Job, RayJobs, attach_or_submit, job_under_way, latest_job
from genmodels.steps.prepare import prepare
from genmodels.steps.reports import load_report, save_report
from genmodels.steps.resolve import resolve


@pytest.fixture
def pictures(stack: Settings, tmp_path: Path) -> RunSpec:
    """The spec of a run on a folder of the test's own, so that nobody has prepared it before."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (16, 8, 8), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return resolve("progressive_gan", f"folder:{folder}", overrides=["resolution=8"])


def job_running(command: str, spec: RunSpec, attempt: int = 1) -> Job:
    """A job under the id of a step that runs some other command."""
    job = Job("prepare", spec, attempt, RayJobs())
    job.cluster.submit(job.id, command, {})
    return job


def lines_of(job: Job) -> list[str]:
    return [line for update in job.follow() for line in update.lines]


def test_a_jobs_address_is_where_browsers_find_it(stack: Settings, pictures: RunSpec, monkeypatch: pytest.MonkeyPatch):
    job = Job("prepare", pictures, 1, RayJobs())
    assert job.url == f"{stack.ray_address}/#/jobs/{job.id}"
    monkeypatch.setattr(settings(), "ray_pages_url", "https://ray.example/")
    assert job.url == f"https://ray.example/#/jobs/{job.id}"
    assert job.cluster.url == stack.ray_address


def test_a_job_asks_the_mirror_of_whoever_started_it(stack: Settings, configure: Callable[..., None], tmp_path: Path):
    """Which the cluster, that was started before, knows nothing of."""
    configure(mirror=tmp_path.as_uri())
    job = attach_or_submit("prepare", resolve("progressive_gan", "utkface", overrides=["resolution=16"]), links={})
    with pytest.raises(DataError, match=re.escape(f"is not at {tmp_path.as_uri()}/utkface/")):
        lines_of(job)


def test_a_fault_of_the_program_is_told_at_once_and_not_retried(stack: Settings):
    """A batch of one, which has no variance to normalise by: torch says so in a ValueError."""
    spec = resolve("infogan", "digits", overrides=["batch_images=1"])
    spec = spec.with_dataset(prepare(spec).dataset_digest)
    job = attach_or_submit("train", spec, links={})
    with pytest.raises(GenmodelsError, match="ValueError: Expected more than 1 value per channel") as caught:
        lines_of(job)
    assert not caught.value.transient
    assert caught.value.where.startswith("worker 0 of 1")
    assert latest_job("train", spec) is not None
    assert job.cluster.log(job.id).count("Expected more than 1 value per channel") < 12, "GROUP_RESTARTS would be more"


IN_TASKS_OF_RAY = """
import sys
from pathlib import Path
from genmodels.data import preprocess
from genmodels.data.catalogue import find
from genmodels.errors import DataError

def fails(contents, **how):
    raise DataError("These images are of another world.")

preprocess.FEW_EXAMPLES = 0
folder, out, *failing = sys.argv[1:]
if failing:
    preprocess.levels = fails
entry = find(f"folder:{folder}")
with entry.examples(lambda done, total: None) as examples:
    done = preprocess.preprocess(entry, examples, Path(out), name="set", resolution=8, ray=True)
(Path(out) / "manifest.json").write_text(done.manifest.model_dump_json())
"""


def test_tasks_of_ray_write_the_same_bytes_and_set_the_same_aside(stack: Settings, pictures: RunSpec, tmp_path: Path):
    folder = tmp_path / "pictures"
    for index, pixels in enumerate(np.random.default_rng(1).integers(0, 256, (16, 8, 8), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / f"more {index}.png")
    (folder / "corrupt.png").write_bytes(b"no image")
    Image.new("L", (8, 4)).save(folder / "small.png")
    script = tmp_path / "in_tasks.py"
    script.write_text(IN_TASKS_OF_RAY)
    here, there = tmp_path / "here", tmp_path / "there"
    for out in (here, there):
        out.mkdir()
    lines_of(job_running(f"python {script} {folder} {there}", pictures))
    entry = find(pictures.dataset)
    with entry.examples(lambda done, total: None) as examples:
        manifest = preprocess(entry, examples, here, name="set", resolution=8).manifest
    assert Manifest.model_validate_json((there / "manifest.json").read_text()) == manifest
    assert sorted(manifest.set_aside.values()) == [1, 1]
    assert [path.read_bytes() for path in sorted(there.rglob("*.npy"))] == [
        path.read_bytes() for path in sorted(here.rglob("*.npy"))
    ]

    failing = job_running(f"python {script} {folder} {there} failing", pictures, attempt=2)
    with pytest.raises(GenmodelsError, match=r"another world"):
        lines_of(failing)
    assert "was lost" not in failing.cluster.log(failing.id)


def test_two_submitters_at_once_have_one_job(stack: Settings, pictures: RunSpec):
    links = {"prefect_flow_run": "http://127.0.0.1/runs/1"}
    with ThreadPoolExecutor(4) as pool:
        jobs = list(pool.map(lambda _: attach_or_submit("prepare", pictures, links=links), range(4)))
    assert {job.id for job in jobs} == {jobs[0].id}
    lines = lines_of(jobs[0])
    report = load_report("prepare", pictures, PrepareReport)
    assert report
    assert sum(report.rows.values()) == 16
    assert not lines, "the step had nothing to say, and what Ray says of itself is left out"

    known = jobs[0].cluster.session.get(f"{jobs[0].cluster.url}/api/jobs/{jobs[0].id}").text
    assert links["prefect_flow_run"] in known
    assert stack.ray_token_path
    for secret in (stack.s3_secret_key.get_secret_value(), stack.ray_token_path.read_text().strip()):
        assert secret not in known + jobs[0].cluster.log(jobs[0].id)


def test_a_steps_error_arrives_as_its_own_sentence(pictures: RunSpec):
    for path in Path(pictures.dataset.removeprefix("folder:")).iterdir():
        path.write_bytes(b"not a picture")
    with pytest.raises(DataError) as here:
        prepare(pictures)
    job = attach_or_submit("prepare", pictures)
    with pytest.raises(DataError) as raised:
        lines_of(job)
    assert str(raised.value) == str(here.value)
    again = latest_job("prepare", pictures)
    assert again
    assert again.id == job.id
    assert attach_or_submit("prepare", pictures).id == Job("prepare", pictures, 2, job.cluster).id


@pytest.mark.parametrize(
    ("command", "kind", "words"),
    [
        ("kill -9 $$", UnavailableError, "killed by signal 9"),
        ("echo first; echo last words; exit 75", UnavailableError, "last words"),
        ("echo RuntimeError: odd; exit 1", GenmodelsError, "RuntimeError: odd"),
    ],
)
def test_an_end_without_a_word_is_told_by_the_exit_code(
    pictures: RunSpec, command: str, kind: type[GenmodelsError], words: str
):
    with pytest.raises(kind, match=words) as raised:
        lines_of(job_running(command, pictures))
    assert raised.value.transient == (kind is UnavailableError)


def test_a_job_that_somebody_stopped_may_be_tried_again(pictures: RunSpec):
    job = job_running("python -c 'import time; time.sleep(300)'", pictures)  # stops at SIGINT, as a step does
    following = job.follow()
    next(following)
    job.stop()
    with pytest.raises(UnavailableError, match="was stopped, by another run that shared it"):
        list(following)


def test_a_report_is_not_kept_waiting_for_the_end_of_its_job(pictures: RunSpec):
    spec = pictures.with_dataset("0" * 64)
    job = Job("register", spec, 1, RayJobs())
    job.cluster.submit(job.id, "echo done; exec sleep 300", {})
    following = job.follow(until_report=True)
    next(following)
    about = {"run_key": spec.run_key, "name": "a", "version": 1, "model_uri": "models:/a/1", "mlflow_run_id": "1"}
    save_report("register", spec, RegisterReport.model_validate(about | {"seconds": 0}))
    list(following)
    info = job.info()
    assert info
    assert info.status in RUNNING
    job.stop()


def test_a_job_that_goes_on_is_that_of_its_later_steps_too(pictures: RunSpec):
    spec = pictures.with_dataset("1" * 64)
    headings = {step: HEADING.format(step) for step in ("train", "evaluate")}
    says = ["starting", headings["train"], "of training", headings["evaluate"], "of evaluation"]
    job = Job("train", spec, 1, RayJobs())
    script = "; ".join(f"echo '{line}'" for line in says)
    job.cluster.submit(job.id, f"{script}; exec sleep 300", {"steps": "train evaluate"})
    assert job_under_way("register", spec) is None
    later = attach_or_submit("evaluate", spec)
    assert (later.id, later.step) == (job.id, "evaluate")
    for one, lines in ((job, ["starting", "of training"]), (later, ["of evaluation"])):
        told: list[str] = []
        for update in one.follow():
            told += update.lines
            if len(told) >= len(lines):
                break
        assert told == lines
    job.stop()
    assert job_under_way("evaluate", spec) is None


@pytest.fixture
def line(stack: Settings) -> Iterator[FaultProxy]:
    line = FaultProxy(stack.ray_address)
    yield line
    line.close()


def test_every_line_of_a_log_comes_once_over_a_network_that_breaks(pictures: RunSpec, line: FaultProxy):
    job = job_running("for i in $(seq 300); do echo line $i; sleep 0.02; done", pictures)
    job.cluster.url = line.url
    lines: list[str] = []
    cuts = 0
    for update in job.follow():
        lines += update.lines
        if len(lines) > 30 * (cuts + 1) and cuts < 3:
            line.cut()
            threading.Timer(0.5, line.mend).start()
            cuts += 1
    assert cuts
    assert lines == [f"line {i}" for i in range(1, 301)]


def test_a_busy_cluster_is_asked_again(pictures: RunSpec, line: FaultProxy):
    job = Job("prepare", pictures, 1, RayJobs())
    job.cluster.url = line.url
    line.busy = 1.0
    threading.Timer(0.5, line.mend).start()
    job.cluster.submit(job.id, "true", {})
    assert line.faults
    list(job.follow())


def test_a_cluster_that_stays_away_is_given_up(pictures: RunSpec, line: FaultProxy):
    job = job_running("sleep 300", pictures)
    job.cluster.url = line.url
    following = job.follow(patience_seconds=1)
    next(following)
    line.cut()
    with pytest.raises(UnavailableError, match="does not answer"):
        list(following)
    line.mend()
    job.stop()


def test_a_cluster_that_has_forgotten_the_job_is_an_error_that_passes(pictures: RunSpec):
    job = Job("prepare", pictures, 1, RayJobs())
    with pytest.raises(UnavailableError, match="lost job"):
        list(job.follow())


def test_a_wrong_token_is_refused_in_one_sentence(stack: Settings):
    cluster = RayJobs()
    cluster.session.headers["Authorization"] = "Bearer 0000"
    started = time.monotonic()
    with pytest.raises(AccessError, match="GENMODELS_RAY_TOKEN_PATH"):
        cluster.info("any")
    assert time.monotonic() - started < 30, "a refusal is no reason to try again"


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_token_that_cannot_be_read_is_refused_in_one_sentence(
    configure: Callable[..., None], tmp_path: Path, content: bytes | None
):
    path = tmp_path / "ray.token"
    if content:
        path.write_bytes(content)
    configure(ray_token_path=str(path))
    with pytest.raises(AccessError, match=f"cannot be read from the file {path}; check GENMODELS_RAY_TOKEN_PATH"):
        RayJobs()
