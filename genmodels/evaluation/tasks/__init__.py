"""What is asked of a model, by what it can do: images to score, to be made, to be reconstructed."""

from collections.abc import Sequence

from genmodels.data.dataset import Dataset
from genmodels.data.manifest import Manifest
from genmodels.errors import SpecError
from genmodels.evaluation.extractors import Extractor
from genmodels.evaluation.tasks.base import Task
from genmodels.evaluation.tasks.density import Likelihood
from genmodels.evaluation.tasks.generation import Sampling, Translation
from genmodels.evaluation.tasks.representation import Clustering, Disentanglement, Interpolation, Representation
from genmodels.models.base import (
    Clusters,
    Density,
    Encodes,
    FromLatents,
    GenerativeModel,
    Samples,
    ScoresDensity,
    Translates,
)
from genmodels.spec import EvaluationSpec

WITHOUT_DENSITY = {
    Density.TRACTABLE: "has a tractable density but no method that scores images",
    Density.APPROXIMATE: "has an approximate density but no method that bounds it",
    Density.IMPLICIT: "defines its density only by drawing from it, and estimates from samples mislead",
    Density.NONE: "defines no density",
}


def tasks_of(
    model: GenerativeModel,
    manifest: Manifest,
    dataset: Dataset,
    extractors: Sequence[Extractor],
    evaluation: EvaluationSpec,
) -> tuple[list[Task], dict[str, str]]:
    """What the model is judged by, and why not by the rest. The first task decides: of an explicit density its
    likelihood, else what the model makes, and the reconstruction where it makes nothing.

    Raises:
        SpecError: if it can nothing that can be judged.
        DataError: if there are too few images to judge it.
    """
    what = manifest, dataset, extractors
    tasks: list[Task] = []
    if isinstance(model, ScoresDensity):
        tasks.append(Likelihood(model, *what, evaluation.iwae_samples))
    if isinstance(model, Samples):
        tasks.append(Sampling(model, *what))
    if isinstance(model, Translates):
        tasks.append(Translation(model, *what))
    if isinstance(model, Encodes):
        tasks.append(Representation(model, *what))
    if isinstance(model, FromLatents) and extractors:
        tasks.append(Interpolation(model, *what))
    if isinstance(model, Encodes) and manifest.factors:
        tasks.append(Disentanglement(model, *what))
    if isinstance(model, Clusters) and model.clusters and manifest.classes:
        tasks.append(Clustering(model, *what))
    if not tasks:
        raise SpecError(
            f"{type(model).__name__} cannot be evaluated: it neither samples nor translates, encodes or scores images."
        )
    return tasks, _not_judged(model, manifest)


def _not_judged(model: GenerativeModel, manifest: Manifest) -> dict[str, str]:
    """The axes and the measures by which a model is not judged, and why."""
    reasons = {}
    if not isinstance(model, ScoresDensity):
        reasons["density"] = f"{model.title} {WITHOUT_DENSITY[model.density]}."
    if not isinstance(model, Samples | Translates):
        reasons["generation"] = f"{model.title} makes no new images."
    if not isinstance(model, Encodes):
        reasons["representation"] = f"{model.title} has no codes of images."
    if manifest.has_points:
        reasons["ms_ssim"] = "MS-SSIM compares the structure of images, and a point has none."
    return reasons
