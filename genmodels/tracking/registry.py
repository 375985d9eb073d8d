"""The model registry: versions of `<model>.<dataset>`, found by their addresses, sampled and translated with."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from genmodels.errors import DataError, SpecError, unknown
from genmodels.settings import settings
from genmodels.spec import digest
from genmodels.storage.cache import keep
from genmodels.tracking.rest import EntityExists, MissingEntity, TrackingServer

if TYPE_CHECKING:
    from torch import nn

ADDRESS = re.compile(r"models:/([^/@]+)(?:/(\d+)|@([\w-]+))")


@dataclass(frozen=True)
class ModelVersion:
    """One version of a registered model."""

    name: str
    version: int
    model_id: str
    run_id: str
    tags: Mapping[str, str]
    aliases: Sequence[str]
    created: datetime | None = None

    @property
    def uri(self) -> str:
        """Its address, models:/NAME/VERSION."""
        return f"models:/{self.name}/{self.version}"

    @property
    def model(self) -> str:
        """The first part of its name, MODEL.DATASET."""
        return self.name.partition(".")[0]

    @property
    def dataset(self) -> str:
        """The second part of its name; empty if there is none."""
        return self.name.partition(".")[2]


class Registry:
    """The registered models of the MLflow server of the settings."""

    def __init__(self, server: TrackingServer | None = None):
        self.server = server or TrackingServer()

    def find(self, model_uri: str) -> ModelVersion:
        """The version at `models:/NAME/VERSION` or `models:/NAME@ALIAS`; SpecError if there is none."""
        match = ADDRESS.fullmatch(model_uri)
        if not match:
            raise SpecError(
                f"{model_uri!r} is not a model's address; expected models:/NAME/VERSION or models:/NAME@ALIAS."
            )
        name, number, alias = match.groups()
        if alias:
            aliases = self.aliases(name)
            if alias not in aliases:
                raise unknown(f"alias of {name}", alias, aliases)
            number = aliases[alias]
        try:
            answer = self.server.get("model-versions/get", name=name, version=number)
        except MissingEntity:
            self.aliases(name)  # raises for an unknown model
            versions = self.versions(name)
            raise unknown(f"version of {name}", str(number), [str(entry.version) for entry in versions]) from None
        return self._version(answer["model_version"])

    def aliases(self, name: str) -> dict[str, str]:
        """The number of the version that each alias of a registered model points to; SpecError if there is no model."""
        try:
            model = self.server.get("registered-models/get", name=name)["registered_model"]
        except MissingEntity:
            models = self.server.get("registered-models/search").get("registered_models", [])
            raise unknown("registered model", name, [model["name"] for model in models]) from None
        return {entry["alias"]: entry["version"] for entry in model.get("aliases", [])}

    def aliased(self, name: str, alias: str) -> ModelVersion | None:
        """The version that an alias of a registered model points to, or None."""
        number = self.aliases(name).get(alias)
        return self.find(f"models:/{name}/{number}") if number else None

    def versions(self, name: str = "", run_key: str = "") -> list[ModelVersion]:
        """All versions, or those of a registered model, of a run key, or of both; by name, the first one first."""
        wanted = {"name": name, "tags.run_key": run_key}
        filter = " AND ".join(f"{key} = '{value}'" for key, value in wanted.items() if value)
        found: list[ModelVersion] = []
        page: dict[str, Any] = {}
        while True:
            answer = self.server.get("model-versions/search", filter=filter, **page)
            found += map(self._version, answer.get("model_versions", []))
            if not answer.get("next_page_token"):
                return sorted(found, key=lambda version: (version.name, version.version))
            page = {"page_token": answer["next_page_token"]}

    def add(
        self, name: str, *, model_id: str, run_id: str = "", tags: Mapping[str, str], description: str, summary: str
    ) -> ModelVersion:
        """The one version of the run key in `tags`, made if there is none.

        MLflow numbers versions in the order in which they are made, so if a second one is made (by another process,
        or because an answer was lost) whoever made it sees the first, and the first is the one that stays. Versions
        whose logged model somebody deleted point to nothing, and are removed.
        """
        for version in self.versions(name, tags["run_key"]):
            if self.logged_model(version.model_id) is None:
                self._remove(version)
        if not (versions := self.versions(name, tags["run_key"])):
            with suppress(EntityExists):
                self.server.post("registered-models/create", name=name, description=summary)
            self.server.post(
                "model-versions/create",
                name=name,
                source=f"models:/{model_id}",
                model_id=model_id,
                run_id=run_id,
                description=description,
                tags=[{"key": key, "value": value} for key, value in tags.items()],
            )
            versions = self.versions(name, tags["run_key"])
        first, *others = versions
        for other in others:
            self._remove(other)
        return first

    def _remove(self, version: ModelVersion) -> None:
        which = {"name": version.name, "version": str(version.version)}
        with suppress(MissingEntity):  # another process was first
            self.server.send("DELETE", "mlflow/model-versions/delete", json=which)

    def logged_model(self, model_id: str) -> dict[str, Any] | None:
        """What MLflow says of a logged model; None if it knows none of that id."""
        try:
            return self.server.get(f"logged-models/{model_id}")["model"]["info"]
        except MissingEntity:
            return None

    def model_tags(self, version: ModelVersion) -> dict[str, str]:
        """The tags of the logged model behind the version: those are for programs, the version's own for people."""
        model = self.logged_model(version.model_id) or {}
        return {tag["key"]: tag["value"] for tag in model.get("tags", [])}

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point the alias to a version, wherever it pointed before."""
        self.server.post("registered-models/alias", name=name, alias=alias, version=str(version))

    def set_tags(self, version: ModelVersion, tags: Mapping[str, str]) -> None:
        """Add tags to a version, or replace their values."""
        for key, value in tags.items():
            self.server.post(
                "model-versions/set-tag", name=version.name, version=str(version.version), key=key, value=value
            )

    def describe(self, version: ModelVersion, description: str) -> None:
        """Replace the version's description, which is markdown."""
        message = {"name": version.name, "version": str(version.version), "description": description}
        self.server.send("PATCH", "mlflow/model-versions/update", json=message)

    def fetch(self, version: ModelVersion, folder: Path) -> Path:
        """Copy the version's exported programs into the folder; DataError if they are not what was registered."""
        exported = self.model_tags(version).get("export")
        if exported is None:
            raise SpecError(f"{version.uri} was not registered by genmodels; take a model that was.")
        facts = json.loads(exported)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.json").write_text(exported)
        place = self.server.get("model-versions/get-download-uri", name=version.name, version=str(version.version))
        for file, sha256 in facts["files"].items():
            path = folder / Path(file).name
            if path.is_file() and _sha256(path.read_bytes()) == sha256:
                continue
            data = self.server.get_artifact(place["artifact_uri"], f"artifacts/export/{path.name}")
            if _sha256(data) != sha256:
                raise DataError(f"{version.uri}: {file} is not the file that was registered; register the model again.")
            path.write_bytes(data)
        return folder

    def _version(self, answer: Mapping[str, Any]) -> ModelVersion:
        return ModelVersion(
            name=answer["name"],
            version=int(answer["version"]),
            model_id=answer["source"].removeprefix("models:/"),
            run_id=answer.get("run_id", ""),
            tags={tag["key"]: tag["value"] for tag in answer.get("tags", [])},
            aliases=answer.get("aliases", []),
            created=datetime.fromtimestamp(int(answer["creation_timestamp"]) / 1000, UTC),
        )


def load(model_uri: str) -> Any:
    """The registered model at that address, as an `ExportedModel`. None of its code is run, only its programs, and
    those only if they are the ones that were registered. Raises SpecError for an unknown address."""
    from genmodels.tracking.exported_model import ExportedModel

    registry = Registry()
    version = registry.find(model_uri)
    folder = settings().cache / "models" / version.name / str(version.version)
    keep(folder)
    return ExportedModel().open(registry.fetch(version, folder))


def sample(
    model_uri: str,
    n: int,
    *,
    seed: int = 0,
    labels: Sequence[int] | None = None,
    truncation: float | None = None,
    temperature: float = 1.0,
) -> np.ndarray:
    """n images, uint8 (n, H, W, C), or points, float32 (n, 1, 1, 2); the same seed gives the same ones, and more of
    them begin with the same.

    `truncation` is the largest |z| of a standard normal number that is drawn, `temperature` their standard deviation.
    Raises SpecError if the model draws none.
    """
    from genmodels.tracking.exported_model import check_latents

    try:
        check_latents(truncation, temperature)  # before the model is fetched
    except ValueError as error:
        raise SpecError(str(error)) from error
    model = load(model_uri)
    if model.facts["kind"] == "reconstructs":
        raise SpecError(
            f"{model_uri} cannot sample: it carries images to codes and back, but defines no distribution to draw "
            "codes from; take a model whose density is not `none` in `genmodels models`, such as vae."
        )
    if model.facts["kind"] != "samples":
        raise SpecError(f"{model_uri} translates images and cannot sample; use `genmodels translate`.")
    if labels is not None and not model.facts["classes"]:
        raise SpecError(f"{model_uri} knows no classes; leave the labels out.")
    try:
        return model.sample(seeds_of(seed, n), None if labels is None else list(labels), truncation, temperature)
    except ValueError as error:
        raise SpecError(str(error)) from error


def seeds_of(seed: int, n: int) -> list[int]:
    """The seeds of the first n images that `sample` gives for a seed."""
    return [int(value) for value in np.random.SeedSequence(seed).generate_state(n)]


def translator(model_uri: str, to: str) -> Any:
    """The registered model at that address, an `ExportedModel`; SpecError unless it translates to the domain `to`."""
    model = load(model_uri)
    if model.facts["kind"] != "translates":
        raise SpecError(
            f"{model_uri} {model.facts['kind']} images and cannot translate; take another, such as cyclegan."
        )
    if to not in model.facts["domains"]:
        raise unknown("domain", to, model.facts["domains"])
    return model


def register_extractor(
    classifier: "nn.Module",
    *,
    dataset: str,
    dataset_digest: str,
    resolution: int,
    channels: int,
    classes: int,
    accuracy: float,
) -> ModelVersion:
    """Register evaluation's classifier as `classifier.<dataset>`, with its accuracy on held-out images, so that anyone
    can see what `fid_classifier` looked through. The same weights for the same data are registered once."""
    from genmodels.tracking import packaging

    registry, name = Registry(), f"classifier.{dataset}"
    with TemporaryDirectory() as temporary:
        folder = Path(temporary, "export")
        facts = packaging.export_classifier(
            classifier, resolution=resolution, channels=channels, classes=classes, folder=folder
        )
        key = digest([dataset_digest, facts["files"]])
        if versions := registry.versions(name, key):
            return versions[0]
        tags = {"run_key": key, "dataset_digest": dataset_digest, "accuracy": f"{accuracy:.4f}"}
        model_id = packaging.log(folder, facts, name=f"classifier-{dataset}", experiment=dataset, tags=tags)
    return registry.add(
        name,
        model_id=model_id,
        tags=tags,
        description=f"Judges samples of {dataset} at {resolution}x{resolution}; {accuracy:.1%} of held-out right.",
        summary=f"Feature extractor of `fid_classifier` and `kid_classifier` on {dataset}.",
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
