"""What Prefect runs itself: from its pages (Run, Retry) and on schedules.

`genmodels serve` publishes these deployments and runs what is due, until it is stopped. `infra/prefect.yaml` publishes
the same ones with `prefect deploy` for the workers of a work pool. Runs that `genmodels retrain` starts belong to the
same deployment as well, because Prefect's pages offer Cancel for no others, but need nobody to take them.
"""

from functools import partial
from typing import Any, cast

from prefect import Flow, get_client
from prefect import serve as serve_deployments
from prefect._internal import observers
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.runner import _scheduled_run_poller
from prefect.schedules import Cron, Schedule
from prefect.utilities.services import critical_service_loop

from flows import alerts
from flows.connection import asking_prefect
from flows.evaluate_again import evaluate_again
from flows.promote import promote
from flows.prune import prune
from flows.retrain import deployed, retrain
from flows.retrain_all import retrain_all
from flows.watch_dataset import watch_dataset

UNANSWERED_POLLS = 100_000  # in a row, of ten seconds and more each: weeks


def deployments() -> list[RunnerDeployment]:
    """All of them. What trains has no limit of Prefect's on its runs: a lease that is not renewed in time would end a
    training. That the same run is trained once is the business of its Ray job's id."""
    one_at_a_time = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
    return [
        deployed(retrain),
        deployed(retrain_all, parameters={"models": ["progressive_gan"]}),
        _scheduled(watch_dataset, Cron("15 3 * * *", timezone="UTC", slug="nightly")),
        _scheduled(prune, Cron("30 4 * * 0", timezone="UTC", slug="weekly"), concurrency_limit=one_at_a_time),
        deployed(evaluate_again, concurrency_limit=one_at_a_time),
        deployed(promote),
    ]


def _scheduled(flow: Flow[..., Any], schedule: Schedule, **options: Any) -> RunnerDeployment:
    """With the schedule if Prefect does not know the deployment yet: an update puts the schedules that it has in the
    place of those that people have made, also where it leaves all else."""
    try:
        with get_client(sync_client=True) as client:
            client.read_deployment_by_name(f"{flow.name}/{flow.name}")
    except ObjectNotFound:
        return deployed(flow, schedule=schedule, **options)
    return deployed(flow, **options)


@asking_prefect()
def publish_alerts() -> dict[str, alerts.Change]:
    """Publish the alerts on the runs of these deployments; the change, by name."""
    return alerts.publish([cast(str, deployment.name) for deployment in deployments()])


@asking_prefect()
def serve(limit: int) -> None:
    """Publish the deployments and their alerts, and execute their runs, `limit` at once at most, until stopped."""
    publish_alerts()
    # Three in a row, some minutes without the server, would end Prefect's runner and with it the trainings that go on
    # below it; no setting says otherwise.
    patient = partial(critical_service_loop, consecutive=UNANSWERED_POLLS)
    for module in (_scheduled_run_poller, observers):
        vars(module)["critical_service_loop"] = patient
    serve_deployments(*deployments(), pause_on_shutdown=False, limit=limit)
