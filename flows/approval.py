"""Asking a person whether a challenger becomes champion: a form on the flow run's page, with both models beside it.

A run of a deployment suspends itself: its process ends, and a server or worker starts the flow again when somebody has
answered. A run that nobody would start again (that of `genmodels retrain`, or one that is part of another) waits where
it is. What was asked is kept with the flow run, so that an answer is about the models that were shown, whatever data
and code have become meanwhile.
"""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID, uuid4

from prefect import get_client, suspend_flow_run
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State, StateType
from prefect.input import RunInput
from prefect.input.actions import create_flow_run_input, read_flow_run_input
from prefect.input.run_input import keyset_from_base_key
from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run
from prefect.states import Paused
from pydantic import Field, ValidationError

from flows import steps
from flows.artifacts import artifact_key, data_uri
from genmodels.errors import GenmodelsError, SpecError, first_problem
from genmodels.spec import Answer, EvaluationReport, Metric, Record, RunSpec
from genmodels.storage.objects import MissingObject, store
from genmodels.tracking.leaderboard import escaped
from genmodels.tracking.promotion import Proposal, propose
from genmodels.tracking.runs import find_run, run_page

ASKED = "approval"
POLL_SECONDS = 2.0
LINE = r"^[^\r\n]*\S[^\r\n]*$"


class Approval(RunInput):
    """The form. Prefect knows no persons, so the name is a claim and is recorded as one."""

    decision: Literal["approve", "reject"] = Field(description="approve: the challenger becomes champion.")
    name: str = Field(min_length=1, max_length=100, pattern=LINE, description="Who decides, for the record.")
    reason: str = Field(min_length=1, max_length=1000, pattern=LINE, description="Why, for the record.")


class Question(Record):
    """What a flow run asked, or asks, a person."""

    key: str
    spec: RunSpec
    champion_version: int | None


class Unanswered(GenmodelsError):
    """The run was ended from outside while it waited for an answer."""

    def __init__(self, state: State | None):
        super().__init__("The run ended before anybody answered; run it again to be asked again.")
        self.cancelled = state is not None and state.type in {StateType.CANCELLED, StateType.CANCELLING}


def asked() -> Question | None:
    """What this flow run asked before it was suspended."""
    found = _kept(ASKED)
    return Question.model_validate(found) if found else None


def ask(spec: RunSpec, *, within_hours: float) -> Answer | None:
    """The answer of a person to whether the spec's registered version becomes champion; None if that is decided, or is
    for nobody to decide, since the version has collapsed.

    Raises:
        Pause: (Prefect's own) when the run is suspended.
        SpecError: for an answer that is none; nothing is changed, and the next try asks again.
        Unanswered: if the run is cancelled or its time is over.
    """
    if (question := asked()) and (given := _given(question)):
        return _answer(question, given)
    proposal = propose(spec)
    if proposal.settled or proposal.has_collapsed:
        return None
    champion = proposal.champion
    question = Question(key=uuid4().hex, spec=spec, champion_version=champion.version if champion else None)
    _remember(question)
    text = _side_by_side(proposal, spec)
    create_markdown_artifact(text, artifact_key("approval", spec), f"Is {proposal.challenger.uri} the next champion?")
    form = Approval.with_initial_data(description=text)
    seconds = max(1, round(within_hours * 3600))
    watch = steps.watcher.get()
    if watch is None and deployment.id and not flow_run.parent_flow_run_id:
        suspend_flow_run(wait_for_input=form, timeout=seconds, key=question.key)
    if watch:
        watch.finished("approve", f"waits for an answer at {steps.flow_url()}")
    _pause(form, question, seconds)
    return _answer(question, _given(question) or {})


def _pause(form: type[Approval], question: Question, seconds: int) -> None:
    """Wait in this process until somebody has answered. Prefect's own `pause_flow_run` does not notice a cancel."""
    get_run_logger().info("Waiting for an answer on the page of this run.")
    state = Paused(timeout_seconds=seconds, reschedule=False, pause_key=question.key)
    keyset = keyset_from_base_key(_base_key(question))
    state.state_details.run_input_keyset = {**keyset}
    form.save(keyset, flow_run_id=UUID(flow_run.id))
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run.id, state)
        while True:
            now = client.read_flow_run(flow_run.id).state
            if now and now.is_running():
                return
            if now is None or not now.is_paused():
                raise Unanswered(now)
            time.sleep(POLL_SECONDS)


def _base_key(question: Question) -> str:
    """That of a pause; Prefect makes that of a suspension itself."""
    return f"paused-{question.key}"


def _given(question: Question) -> Mapping[str, Any] | None:
    """What was typed into the form, if anything was."""
    return _kept(keyset_from_base_key(_base_key(question))["response"]) or _kept(
        keyset_from_base_key(f"suspended-{question.key}")["response"]
    )


def _answer(question: Question, given: Mapping[str, Any]) -> Answer:
    try:
        form = Approval.model_validate(given)
    except ValidationError as error:
        _forget()
        field, problem = first_problem(error)
        raise SpecError(
            f"The answer is none, because of {field or 'the form'}: {problem}; nothing was changed, retry to be asked "
            "again."
        ) from None
    return Answer(
        approve=form.decision == "approve",
        name=form.name,
        reason=form.reason,
        time=datetime.now(UTC),
        champion_version=question.champion_version,
    )


def _remember(question: Question) -> None:
    _forget()
    create_flow_run_input(ASKED, question.model_dump(mode="json"), flow_run_id=UUID(flow_run.id))


def _kept(key: str) -> Any:
    """What is kept with this flow run under that key, or None."""
    return read_flow_run_input(key, flow_run_id=UUID(flow_run.id))


def _forget() -> None:
    if _kept(ASKED):
        with get_client(sync_client=True) as client:
            client.delete_flow_run_input(UUID(flow_run.id), ASKED)


def _side_by_side(proposal: Proposal, spec: RunSpec) -> str:
    """Both models in markdown, pictures and all: what a person needs for a decision."""
    challenger, champion, scores = proposal.challenger, proposal.champion, proposal.scores
    sides = {f"challenger {challenger.version}": scores}
    if champion:
        sides[f"champion {champion.version}"] = proposal.champion_scores
    rows = []
    for metric in scores.metrics if scores else []:
        better = {"lower": "↓", "higher": "↑"}[metric.better]
        primary = ", decides" if scores and metric.name == scores.primary else ""
        values = " | ".join(_value(report, metric.name) for report in sides.values())
        rows.append(f"| {metric.title} {better}{primary} | {values} |")
    run_id = find_run(spec)
    lines = [
        f"## Shall {challenger.name} version {challenger.version} be the champion?",
        f"By the rule: {'yes' if proposal.decision.promoted else 'no'}. {escaped(proposal.decision.reason)}\n",
        f"| metric | {' | '.join(sides)} |",
        "|---" * (1 + len(sides)) + "|",
        *rows,
        *(f"\n### {title}\n{_picture(report)}" for title, report in sides.items()),
        f"\n[The run in MLflow]({run_page(run_id)})" if run_id else "",
    ]
    return "\n".join(lines)


def _value(report: EvaluationReport | None, name: str) -> str:
    try:
        metric: Metric | None = report.metric(name) if report else None
    except KeyError:
        metric = None
    return metric.with_interval if metric else "–"


def _picture(report: EvaluationReport | None) -> str:
    """The first of its pictures, which is that of its samples, translations or reconstructions."""
    name, address = next(iter(report.pictures.items()), ("", "")) if report else ("", "")
    try:
        return f"![{name}]({data_uri(store().read(address))})" if address else "There is no picture of it."
    except MissingObject:
        return "Its picture is gone."
