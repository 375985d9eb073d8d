"""What flows tell Prefect's automations beyond the states of their runs: that a step goes on, that the gate refused.

Prefect adds the flow run, its flow and its deployment to each event by itself.
"""

from typing import Self

from prefect.events import emit_event
from prefect.runtime import task_run

from flows.artifacts import Every, best_effort
from genmodels.spec import Progress, Promotion
from genmodels.terminal import described

STEP_STARTED = "genmodels.step.started"
STEP_PROGRESSED = "genmodels.step.progressed"
STEP_ENDED = "genmodels.step.ended"
PROMOTION_REFUSED = "genmodels.promotion.refused"
BEAT_SECONDS = 20.0


class Pulse:
    """A step's events, from its start to its end, however it ends; between them one now and then if it moves. That
    there is none for long, because the step stands still or because this process is gone, is what an alert is for."""

    def __init__(self) -> None:
        self._resource = {
            "prefect.resource.id": f"genmodels.step.{task_run.id}.{task_run.run_count}",
            "prefect.resource.name": task_run.name or "",
        }
        self._due = Every(BEAT_SECONDS)
        self._at: tuple[str, int] | None = None

    def __enter__(self) -> Self:
        self._emit(STEP_STARTED, "started")
        return self

    def __exit__(self, *_: object) -> None:
        self._emit(STEP_ENDED, "ended")

    def beat(self, progress: Progress | None) -> None:
        """Tell of a progress, if it is one."""
        at = (progress.stage, progress.done) if progress else None
        if progress and at != self._at and self._due():
            self._at = at
            self._emit(STEP_PROGRESSED, described(progress))

    @best_effort
    def _emit(self, event: str, message: str) -> None:
        emit_event(event, resource=self._resource | {"genmodels.message": message})


@best_effort
def refused(promotion: Promotion) -> None:
    """The gate left the champion where it was."""
    resource = {
        "prefect.resource.id": f"genmodels.version.{promotion.name}.{promotion.version}",
        "prefect.resource.name": f"{promotion.name} version {promotion.version}",
        "genmodels.message": promotion.reason,
    }
    emit_event(PROMOTION_REFUSED, resource=resource, payload=promotion.model_dump(mode="json"))
