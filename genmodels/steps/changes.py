"""What is new about a run: since its model was last registered, or against another run."""

from genmodels.spec import RunSpec
from genmodels.steps.prepare import prepared
from genmodels.steps.reports import load_registered
from genmodels.tracking.promotion import spec_of
from genmodels.tracking.protocol import leaves
from genmodels.tracking.registry import ModelVersion, Registry


def registered(spec: RunSpec) -> ModelVersion | None:
    """The version that came from the data as they are now, this code and this configuration, and was judged as this one
    asks for; None if there is none."""
    report = prepared(spec)
    if report is None:
        return None
    bound = spec.with_dataset(report.dataset_digest)
    if load_registered(bound) is None:
        return None
    return next(iter(Registry().versions(spec.registered_name, bound.run_key)), None)


def changes(spec: RunSpec) -> str:
    """Why `registered` finds none, in words: what differs from the newest version of the same model and data set."""
    versions = Registry().versions(spec.registered_name)
    if not versions:
        return f"{spec.model} was never registered for {spec.dataset}"
    newest = versions[-1]
    report = prepared(spec)
    changed = [] if report and report.dataset_digest == newest.tags.get("dataset_digest") else ["data"]
    if spec.code_version != newest.tags.get("code_version"):
        changed.append("code")
    before = spec_of(newest)
    if before is None or _configuration(before) != _configuration(spec):
        changed.append("configuration")
    if not changed:
        return f"the registration of version {newest.version} did not end"
    return f"{' and '.join(changed)} changed since version {newest.version}"


def differences(before: RunSpec, after: RunSpec) -> dict[str, tuple[str, str]]:
    """What decides the weights of both runs and differs, by name: what it was, and what it is."""

    def facts(spec: RunSpec) -> dict[str, str]:
        decides = spec.config | {"training": spec.training.numerics(), "seed": spec.seed}
        digests = {"data": str(spec.dataset_digest)[:8], "code": spec.code_version[:8]}
        return {key: str(value) for key, value in leaves(decides | digests).items()}

    old, new = facts(before), facts(after)
    names = [*new, *(name for name in old if name not in new)]
    return {name: (old.get(name, "–"), new.get(name, "–")) for name in names if old.get(name) != new.get(name)}


def _configuration(spec: RunSpec) -> tuple[object, ...]:
    return spec.config, spec.training.numerics(), spec.seed, spec.evaluation
