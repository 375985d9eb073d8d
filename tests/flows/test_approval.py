"""A person decides about a challenger: through Prefect's API as its pages use it, and once on the page itself."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
import requests
from finished_run import finished_run
from playwright.sync_api import Page, expect
from prefect.client.schemas.objects import State
from test_deployments import registered, server  # noqa: F401  (the fixture)
from test_retrain import artifacts, prefect
from waiting import wait_for

from flows.retrain import Outcome, retrain
from genmodels.settings import Settings
from genmodels.spec import Answer, RunSpec
from genmodels.storage.objects import store
from genmodels.tracking.promotion import appoint, promote, settle
from genmodels.tracking.registry import ModelVersion, Registry
from genmodels.tracking.rest import TrackingServer

pytestmark = pytest.mark.timeout(600)

TINY = ["fmap_max=4", "latent=4"]
NAME = "progressive_gan.digits"
ANN = {"decision": "approve", "name": "Ann *the* <b>Boss</b>", "reason": "sharper [strokes](http://x)"}


def challenger(seed: int, value: float) -> tuple[RunSpec, int]:
    """A run that is done up to the decision, and the number of its version."""
    spec = finished_run("progressive_gan", "digits", *TINY, seed=seed, value=value)
    return spec, registered(spec)


def champion() -> int | None:
    version = Registry().aliased(NAME, "champion")
    return version.version if version else None


def version(number: int) -> ModelVersion:
    return Registry().find(f"models:/{NAME}/{number}")


@contextmanager
def asking(stack: Settings, seed: int, hours: float = 1.0) -> Iterator[tuple[str, Future[State]]]:
    """The id of a flow run of that seed that waits for an answer, and what it ends in."""
    parameters: dict[str, Any] = {"overrides": TINY, "seed": seed, "workers": 1, "promotion": "manual"}

    def run() -> State:
        return retrain("progressive_gan", "digits", **parameters, answer_within_hours=hours, return_state=True)

    before = {paused["id"] for paused in all_paused(stack)}
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(run)
        yield wait_for(lambda: [r["id"] for r in all_paused(stack) if r["id"] not in before])[0], ended


def all_paused(stack: Settings) -> list[dict[str, Any]]:
    return prefect(stack, "flow_runs/filter", flow_runs={"state": {"type": {"any_": ["PAUSED"]}}})


def answer(stack: Settings, run: str, given: Mapping[str, Any]) -> str:
    """ACCEPT, REJECT or ABORT."""
    url = f"{stack.prefect_api_url}/flow_runs/{run}/resume"
    return requests.post(url, json={"run_input": given}, timeout=60).json()["status"]


@pytest.fixture
def old(stack: Settings) -> int:
    """A champion."""
    _, number = challenger(930, 0.5)
    appoint(f"{NAME}@{number}")
    return number


def test_what_is_no_answer_is_refused_and_one_valid_approval_makes_a_champion(stack: Settings, old: int):
    """Worse by the rule, so that only the person can have done it."""
    spec, new = challenger(931, 0.9)
    with asking(stack, 931) as (run, ended):
        for wrong in [
            {},
            {**ANN, "decision": "maybe"},
            {**ANN, "name": ""},
            {**ANN, "name": "two\nlines"},
            {**ANN, "reason": 3},
            {**ANN, "reason": "x" * 1001},
            {"decision": "approve"},
        ]:
            assert answer(stack, run, wrong) == "REJECT", wrong
        assert champion() == old
        assert answer(stack, run, ANN) == "ACCEPT"
        assert answer(stack, run, {**ANN, "decision": "reject"}) == "ABORT", "a second answer"
        state = ended.result(120)
    assert state.is_completed(), state.message
    assert champion() == new
    assert Registry().find(f"models:/{NAME}@previous").version == old
    tags = version(new).tags
    assert tags["approval.decision"] == "approve" + "d"
    assert tags["approval.claimed_name"] == ANN["name"]
    assert tags["approval.reason"] == ANN["reason"]
    assert abs(time.time() - time.mktime(time.strptime(tags["approval.time"][:19], "%Y-%m-%dT%H:%M:%S"))) < 86400
    assert tags["gate.verdict"] == "approved"
    found = {key: artifact["data"] for key, artifact in artifacts(stack, run).items()}
    shown = found["approval-progressive-gan-digits"]
    assert shown.count("](data:image/webp;base64,") == 2, "both models' pictures"
    assert "| sliced_wasserstein_8 ↓, decides | 0.9 [0.89, 0.91] | 0.5 [0.49, 0.51] |" in shown
    recorded = found["promotion-progressive-gan-digits"]
    assert r"Ann \*the\* \<b\>Boss\</b\>" in recorded
    assert "](http" not in recorded
    assert promote(spec).decided_by == ANN["name"], "the decision stands"


def test_a_rejected_challenger_keeps_its_version_and_the_reason(stack: Settings, old: int):
    """Better by the rule, so that only the person can have kept it back."""
    spec, new = challenger(932, 0.1)
    with asking(stack, 932) as (run, ended):
        assert answer(stack, run, {"decision": "reject", "name": "Bo", "reason": "all sevens"}) == "ACCEPT"
        assert ended.result(120).is_completed()
    assert champion() == old
    assert version(new).tags["gate.verdict"] == "rejected"
    assert version(new).tags["gate.reason"] == "Rejected by Bo (as claimed): all sevens"
    assert not promote(spec).promoted, "nor does a rerun bring it back"
    assert champion() == old


def test_an_answer_after_a_newer_champion_changes_nothing(stack: Settings, old: int):
    _, late = challenger(933, 0.1)
    _, newer = challenger(934, 0.3)
    with asking(stack, 933) as (run, ended):
        appoint(f"{NAME}@{newer}")
        assert answer(stack, run, ANN) == "ACCEPT"
        state = ended.result(120)
    assert champion() == newer
    assert f"but by now the champion is version {newer}; run it again to be asked again." in str(state.message)
    assert version(late).tags["gate.verdict"] == "outdated"
    assert version(late).tags["approval.claimed_name"] == ANN["name"]


@pytest.mark.parametrize(
    ("end", "seed", "hours", "state_type"),
    [
        (lambda stack, run: None, 935, 3 / 3600, "FAILED"),
        (
            lambda stack, run: requests.post(
                f"{stack.prefect_api_url}/flow_runs/{run}/set_state", json={"state": {"type": "CANCELLED"}}, timeout=60
            ),
            936,
            1.0,
            "CANCELLED",
        ),
    ],
    ids=["timeout", "cancel"],
)
def test_nothing_changes_without_an_answer(
    stack: Settings, old: int, end: Callable[[Settings, str], None], seed: int, hours: float, state_type: str
):
    _, new = challenger(seed, 0.1)
    with asking(stack, seed, hours) as (run, ended):
        end(stack, run)
        state = ended.result(120)
    assert state.type.value == state_type
    assert champion() == old
    assert "gate.verdict" not in version(new).tags
    assert answer(stack, run, ANN) == "ABORT", "too late"
    assert champion() == old


def test_a_collapsed_training_is_told_of_and_refused_and_nobody_is_asked(stack: Settings):
    """Its generator draws a line of images, from a latent of one dimension; the guard would let it be."""
    guard = "training.guards.mode_collapse"
    overrides = ["latent=1", "generator_units=32", "images=12800", f"{guard}.action=warn"]
    outcome = retrain("gan", "digits", overrides=overrides, workers=1, promotion="manual")
    assert isinstance(outcome, Outcome)
    assert re.match(
        r"It has collapsed: its images are \d+\S* times closer together than real ones\.", outcome.promotion
    )
    assert "champion" not in outcome.aliases

    resource = {"id": [f"genmodels.run.{outcome.run_key}"]}
    wanted = {"event": {"name": ["genmodels.guard.mode_collapse"]}, "resource": resource}
    [event] = wait_for(lambda: prefect(stack, "events/filter", filter=wanted)["events"])
    assert event["payload"]["action"] == "warn"
    assert event["payload"]["value"] > event["payload"]["threshold"] == 10.0
    version = Registry().find(outcome.model_uri)
    assert version.tags["gate.verdict"] == "refused"
    assert "mode_collapse" in version.tags["guard.objections"].split(", ")
    run = TrackingServer().get("runs/get", run_id=version.run_id)["run"]
    metrics = {metric["key"]: metric["value"] for metric in run["data"]["metrics"]}
    assert f"{metrics['guard/mode_collapse']:.4g}" == version.tags["guard.mode_collapse"]
    assert {"guard/low_diversity", "guard/lost_classes", "gradient_norm/generator"} <= set(metrics)

    spec = RunSpec.model_validate_json(store().get(f"runs/{outcome.run_key}/spec.json"))
    late = Answer(approve=True, name="Ann", reason="crisp", time=datetime.now(UTC), champion_version=None)
    decision = settle(spec, late)
    assert not decision.promoted, "who was asked before there was this rule"
    assert decision.reason == f"{outcome.promotion} Ann (as claimed) approved it all the same."
    assert "champion" not in Registry().find(outcome.model_uri).aliases
    assert appoint(f"{version.name}@{version.version}", "to look at it").promoted, "but by hand it can be"


def test_a_served_run_suspends_and_goes_on_when_the_form_is_filled(
    server: Settings,  # noqa: F811
    old: int,
    page: Page,
):
    spec, new = challenger(937, 0.9)
    deployment = prefect(server, "deployments/name/retrain/retrain")["id"]
    parameters = {"model": "progressive_gan", "dataset": "digits", "overrides": TINY, "seed": 937, "workers": 1}
    url = f"{server.prefect_api_url}/deployments/{deployment}/create_flow_run"
    body = {"parameters": {**parameters, "promotion": "manual"}}
    run = requests.post(url, json=body, timeout=60).json()["id"]
    wait_for(lambda: prefect(server, f"flow_runs/{run}")["state"]["name"] == "Suspended", 300)

    page.goto(f"{server.prefect_api_url.removesuffix('/api')}/runs/flow-run/{run}")
    page.get_by_role("button", name="Resume").click()
    form = page.get_by_role("dialog")
    expect(form.get_by_text(f"Shall {NAME} version {new} be the champion?")).to_be_visible()
    expect(form.get_by_text("0.9 [0.89, 0.91]", exact=True)).to_be_visible()
    pictures = form.locator('img[src^="data:image"]')
    expect(pictures).to_have_count(2)
    assert min(picture.evaluate("image => image.naturalWidth") for picture in pictures.all()) >= 256
    form.locator("fieldset button").first.focus()
    page.keyboard.press("ArrowDown")
    page.get_by_role("option", name="approve").click()
    form.locator("textarea").nth(0).fill("Ann")
    form.locator("textarea").nth(1).fill("crisp")
    form.get_by_role("button", name="Submit").click()

    wait_for(lambda: prefect(server, f"flow_runs/{run}")["state"]["type"] == "COMPLETED", 300)
    assert prefect(server, f"flow_runs/{run}")["state"]["message"] == "Approved by Ann (as claimed): crisp"
    assert champion() == new
    assert version(new).tags["approval.claimed_name"] == "Ann"
    assert version(new).tags["run_key"] == spec.run_key
