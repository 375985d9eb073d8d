"""The alerts: one Prefect automation for each thing that somebody should hear of, and one that gives up runs whose
process is gone.

Without more, an automation only leaves its event in Prefect. Whom it tells, by Slack, webhook or mail, is a block that
is made on Prefect's pages and named by GENMODELS_ALERT_BLOCK, or an action that is added to it there.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Literal

from prefect.automations import AutomationCore, EventTrigger, Posture
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ActionTypes, CallWebhook, ChangeFlowRunState, DoNothing, SendNotification
from prefect.exceptions import ObjectNotFound

from flows.events import PROMOTION_REFUSED, STEP_ENDED, STEP_PROGRESSED, STEP_STARTED
from genmodels.errors import SpecError
from genmodels.settings import settings

Change = Literal["created", "updated", "unchanged"]

# Expressions of Jinja, which the server evaluates with the event and the flow run that it belongs to.
STATE_MESSAGE = "event.resource['prefect.state-message']"
OWN_MESSAGE = "event.resource['prefect.resource.name'] ~ ': ' ~ event.resource['genmodels.message']"
NOBODY = "'No server and no worker took it.'"

# Prefect's engine sends a heartbeat every three minutes, and the server takes in events late when it was away.
SILENCE = timedelta(minutes=10)


def alerts(deployments: Sequence[str]) -> list[AutomationCore]:
    """All alerts on the runs of these deployments, with the actions of the settings, or with none; and the end of runs
    that were killed, which could not say so themselves. The server gives up no run that has ended, and one that was
    silent and lives ends as it would have."""
    minutes = settings().alert_minutes
    # By the state's type: its name, which is also the event's, may be any.
    states = {
        "failure": ("FAILED", "a run failed"),
        "crash": ("CRASHED", "the process of a run died"),
        "cancellation": ("CANCELLED", "a run was cancelled"),
        "approval": ("PAUSED", "a run waits for an answer"),
    }
    found = [_alert(name, about, _on_state(type, deployments), STATE_MESSAGE) for name, (type, about) in states.items()]
    late = _on_state("SCHEDULED", deployments, event="prefect.flow-run.Late")
    refused = EventTrigger(expect={PROMOTION_REFUSED}, match_related=_of(deployments), posture=Posture.Reactive)
    stalled = EventTrigger(
        after={STEP_STARTED, STEP_PROGRESSED},
        expect={STEP_PROGRESSED, STEP_ENDED},
        for_each={"prefect.resource.id"},
        match_related=_of(deployments),
        posture=Posture.Proactive,
        within=timedelta(minutes=minutes),
    )
    silent = EventTrigger(
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.*"},
        for_each={"prefect.resource.id"},
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related=_of(deployments, role="flow"),  # heartbeats do not name their deployment
        posture=Posture.Proactive,
        within=SILENCE,
    )
    crash = ChangeFlowRunState(
        name=None,
        force=False,
        state=StateType.CRASHED,
        message=f"Its process is gone: no sign of life for {SILENCE}. Run it again to go on from where it was.",
    )
    return [
        *found,
        _alert("missed-schedule", "a run was due and nobody started it", late, NOBODY),
        _alert("gate-refusal", "the gate kept a challenger from becoming champion", refused, OWN_MESSAGE),
        _alert("no-progress", f"a step made no progress for {minutes:g} minutes", stalled, OWN_MESSAGE),
        _automation("silence", "Gives up runs whose process is gone.", silent, crash),
    ]


def publish(deployments: Sequence[str]) -> dict[str, Change]:
    """Publish the alerts, and say what that changed, by name. Those that are there already stay as they are: whether
    they are on, and, unless the settings name a block, what a person had them do.

    Raises SpecError if the settings name a block that Prefect does not have.
    """
    with get_client(sync_client=True) as client:
        return {alert.name: _publish(alert, client) for alert in alerts(deployments)}


def _publish(alert: AutomationCore, client: SyncPrefectClient) -> Change:
    found = sorted(client.read_automations_by_name(alert.name), key=lambda automation: str(automation.id))
    if not found:
        client.create_automation(alert)
        return "created"
    first, *doubles = found
    for double in doubles:  # two published at once
        client.delete_automation(double.id)
    kept = {"enabled": first.enabled}
    if not settings().alert_block or isinstance(alert.actions[0], ChangeFlowRunState):
        kept |= {"actions": first.actions}
    wanted = alert.model_copy(update=kept)
    if _content(first) == _content(wanted):
        return "unchanged"
    client.update_automation(first.id, wanted)
    return "updated"


def _content(automation: AutomationCore) -> dict[str, object]:
    """What of an automation is ours to say."""
    return automation.model_dump(include={"description", "tags", "trigger", "actions"})


def _alert(name: str, about: str, trigger: EventTrigger, message: str) -> AutomationCore:
    return _automation(name, f"Tells that {about}.", trigger, _action(name, about, message))


def _automation(name: str, purpose: str, trigger: EventTrigger, action: ActionTypes) -> AutomationCore:
    return AutomationCore(
        name=f"genmodels-{name}",
        description=f"{purpose} Published by genmodels.",
        tags=["genmodels"],
        trigger=trigger,
        actions=[action],
    )


def _action(name: str, about: str, message: str) -> ActionTypes:
    if not (address := settings().alert_block):
        return DoNothing()
    type_slug, _, block_name = address.partition("/")
    with get_client(sync_client=True) as client:
        try:
            block = client.read_block_document_by_name(block_name, type_slug)
        except ObjectNotFound:
            raise SpecError(
                f"Prefect has no block {address!r}; make one on its page Blocks and set GENMODELS_ALERT_BLOCK to "
                "TYPE/NAME, such as slack-webhook/ops."
            ) from None
    if type_slug == "webhook":
        values = f"'alert': '{name}', 'run': flow_run.name, 'address': flow_run|ui_url, 'message': {message}"
        return CallWebhook(block_document_id=block.id, payload=f"{{{{ {{{values}}} | tojson }}}}")
    body = f"{{{{ flow_run.name }}}}: {{{{ {message} }}}}\n{{{{ flow_run|ui_url }}}}"
    return SendNotification(block_document_id=block.id, subject=f"genmodels: {about}", body=body)


def _on_state(type: str, deployments: Sequence[str], event: str = "prefect.flow-run.*") -> EventTrigger:
    return EventTrigger(
        expect={event},
        match={"prefect.resource.id": "prefect.flow-run.*", "prefect.state-type": type},
        match_related=_of(deployments),
        posture=Posture.Reactive,
    )


def _of(deployments: Sequence[str], role: str = "deployment") -> dict[str, str | list[str]]:
    """Events of the runs of these deployments, or of the flows of the same names. What a run starts in its own process
    is told of as the run itself."""
    return {"prefect.resource.role": role, "prefect.resource.name": sorted(deployments)}
