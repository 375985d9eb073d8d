"""The flow for a schedule: retrain if data, code or configuration changed since the last registered version."""

from collections.abc import Sequence

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.forms import Dataset, Model, Override, Preset, PromotionBy, Seed, Workers
from flows.retrain import retrain, run_name
from genmodels.errors import GenmodelsError
from genmodels.steps.changes import changes, registered
from genmodels.steps.resolve import resolve


@flow(name="watch-dataset", flow_run_name=run_name, persist_result=False)
def watch_dataset(
    model: Model = "progressive_gan",
    dataset: Dataset = "digits",
    preset: Preset = "demo",
    overrides: Sequence[Override] = (),
    seed: Seed = 0,
    workers: Workers = 2,
    promotion: PromotionBy = "automatic",
) -> State:
    """Retrain a model if its data, code or configuration changed since its last registered version.

    Args:
        model: What learns; `genmodels models` says what data each needs.
        dataset: A name from `genmodels datasets`, folder:PATH, or s3://BUCKET/PREFIX.
        preset: The settings to start from; demo learns in minutes on a CPU, paper is the paper's.
        overrides: KEY=VALUE replaces a setting of the model, training.KEY=VALUE one of the engine, evaluation.KEY=VALUE
            one of how it is judged.
        seed: Of everything random; the same seed gives the same model.
        workers: Data-parallel training processes on the Ray cluster.
        promotion: Who makes a challenger champion; automatic is the rule, manual a person, who is asked on its page.
    """
    try:
        spec = resolve(model, dataset, preset, overrides, seed, workers)
        if version := registered(spec):
            return Completed(
                name="Unchanged",
                message=f"Data, code and configuration are unchanged since {version.created:%Y-%m-%d %H:%M} UTC: they "
                f"gave {version.uri}.",
            )
        why = changes(spec)
    except GenmodelsError as error:
        return Failed(message=f"Nothing was started: {error}", data=error)
    ended = retrain(model, dataset, preset, overrides, seed, workers, promotion, return_state=True)
    return State(type=ended.type, message=f"Retrained, because {why}. {ended.message}")
