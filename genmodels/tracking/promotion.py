"""Which version of a registered model is its champion: the rule, and the change of aliases."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from genmodels.errors import SpecError
from genmodels.spec import Answer, EvaluationReport, Metric, Promotion, RunSpec
from genmodels.storage.objects import MissingObject, store
from genmodels.tracking.lease import lease
from genmodels.tracking.protocol import incomparable
from genmodels.tracking.registry import ModelVersion, Registry

COLLAPSED = {  # by guard of training: from which value on nothing outweighs it, whatever the run itself was told
    "mode_collapse": (10.0, "its images are {} times closer together than real ones"),
    "low_diversity": (1.8, "its images differ {} times less from each other than real ones"),
    "lost_classes": (0.8, "the classes of its images have {} nats less entropy than those of real ones"),
}
WITHDRAWN = "withdrawn"  # the verdict on a champion that a person replaced
REJECTED = "rejected"  # the verdict on a challenger that a person did not want
FINAL = {WITHDRAWN, REJECTED}  # no rerun of these comes back by itself


@dataclass(frozen=True)
class Proposal:
    """A challenger beside the champion, and what the rule says of them."""

    challenger: ModelVersion
    scores: EvaluationReport | None
    champion: ModelVersion | None
    champion_scores: EvaluationReport | None
    settled: Promotion | None  # the decision, if there is one that stands

    @property
    def decision(self) -> Promotion:
        """The rule's."""
        return decide(self.challenger, self.scores, self.champion, self.champion_scores)

    @property
    def has_collapsed(self) -> bool:
        """Whether the rule's decision is nobody's to change."""
        return collapse(self.challenger) is not None


def promote(spec: RunSpec) -> Promotion:
    """Make the spec's registered version the champion if it is better than the present one, or if there is none.

    MLflow has no compare-and-set for aliases, so comparing and changing is done by one process at a time, under a
    lease, and who has lost that moves no alias. The decision goes into the version's tags before an alias moves: who
    dies in between leaves the old champion, and a rerun comes to the same decision. What was champion stays reachable
    as `previous`. A version that a person took out of that place (`appoint`) stays out.
    """
    registry = Registry()
    with lease(f"champion/{spec.registered_name}") as renew:
        proposal = _proposal(spec, registry)
        if proposal.settled:
            return proposal.settled
        decision = proposal.decision
        _conclude(proposal, decision, "promoted" if decision.promoted else "refused", registry, renew)
    return decision


def propose(spec: RunSpec) -> Proposal:
    """What there is to decide about the spec's registered version; changes nothing."""
    return _proposal(spec, Registry())


def rematch(spec: RunSpec) -> tuple[ModelVersion, RunSpec] | None:
    """The champion, and the spec by which it is judged as the spec's registered version was, on the same held-out data;
    None if it was, or if there is nothing to decide or to judge it from.

    The data may have changed since, or the measures. What is held out follows from the images' content, so of what the
    champion learnt from next to nothing is among them.
    """
    proposal = _proposal(spec, Registry())
    champion, theirs = proposal.champion, proposal.champion_scores
    if proposal.settled or proposal.has_collapsed or champion is None or proposal.scores is None:
        return None
    before = spec_of(champion)
    if before is None or (theirs and not incomparable(proposal.scores, theirs)):
        return None
    return champion, before.model_copy(update={"judged_on": spec.dataset_digest, "evaluation": spec.evaluation})


def settle(spec: RunSpec, answer: Answer) -> Promotion:
    """Do as a person answered who was asked about the spec's registered version and the champion of that time.

    Nothing changes if that is decided already, by an earlier answer or by another run, if there is another champion by
    now, or if the version has collapsed. The answer goes into the version's tags with the name that was claimed, before
    an alias moves.
    """
    registry = Registry()
    with lease(f"champion/{spec.registered_name}") as renew:
        proposal = _proposal(spec, registry)
        if proposal.settled:
            return proposal.settled
        champion = proposal.champion.version if proposal.champion else None
        said = "approved" if answer.approve else "rejected"
        verdict, reason = said, f"{said.capitalize()} by {answer.name} (as claimed): {answer.reason}"
        if champion != answer.champion_version:
            verdict = "outdated"
            reason = (
                f"{answer.name} (as claimed) {said} it beside {_named(answer.champion_version)}, but by now the "
                f"champion is {_named(champion)}; run it again to be asked again."
            )
        if answer.approve and proposal.has_collapsed:
            verdict = "refused"
            reason = f"{proposal.decision.reason} {answer.name} (as claimed) {said} it all the same."
        facts = {"promoted": verdict == "approved", "reason": reason, "decided_by": answer.name, "decided": answer.time}
        decision = proposal.decision.model_copy(update=facts)
        record = {"approval.decision": said, "approval.claimed_name": answer.name, "approval.reason": answer.reason}
        registry.set_tags(proposal.challenger, record | {"approval.time": answer.time.isoformat(timespec="seconds")})
        _conclude(proposal, decision, verdict, registry, renew)
    return decision


def _proposal(spec: RunSpec, registry: Registry) -> Proposal:
    name = spec.registered_name
    if not (versions := registry.versions(name, spec.run_key)):
        raise SpecError(
            f"The run {spec.run_key[:8]} of {spec.model} on {spec.dataset} is not registered: `register` it first."
        )
    challenger, champion = versions[0], registry.aliased(name, "champion")
    is_champion = champion is not None and champion.version == challenger.version
    tags = champion.tags if champion and is_champion else challenger.tags
    final = "gate" in tags and (is_champion or tags.get("gate.verdict") in FINAL)
    return Proposal(
        challenger=challenger,
        scores=evaluation_of(challenger, registry),
        champion=champion,
        champion_scores=evaluation_of(champion, registry) if champion else None,
        settled=Promotion.model_validate_json(tags["gate"]) if final else None,
    )


def _conclude(
    proposal: Proposal, decision: Promotion, verdict: str, registry: Registry, renew: Callable[[], None]
) -> None:
    """The decision into the version's tags, then the aliases."""
    renew()
    registry.set_tags(proposal.challenger, _verdict(decision, verdict))
    if decision.promoted:
        renew()
        if proposal.champion:
            registry.set_alias(decision.name, "previous", proposal.champion.version)
        registry.set_alias(decision.name, "champion", proposal.challenger.version)


def _named(version: int | None) -> str:
    return "none" if version is None else f"version {version}"


def appoint(address: str, because: str = "") -> Promotion:
    """Make a registered version the champion because a person says so, be it better or not: a rollback, most often.

    What was champion stays reachable as `previous`, and its own run, done again, does not make it champion again; only
    a person does. Both versions' tags tell what happened before an alias moves, so that a second call ends what a
    first one began.

    Args:
        address: NAME@VERSION, NAME@ALIAS (`previous`, say), or models:/NAME/VERSION.
        because: why, for the record.

    Raises:
        SpecError: for an unknown model, version or alias.
    """
    registry = Registry()
    name = registry.find(model_uri(address)).name
    with lease(f"champion/{name}") as renew:
        version, champion = registry.find(model_uri(address)), registry.aliased(name, "champion")
        if champion and champion.version == version.version:
            return _decision(
                version, registry, promoted=True, reason=f"Version {version.version} is the champion already."
            )
        in_place_of = f" in the place of version {champion.version}" if champion else ""
        reason = f"Appointed by hand{in_place_of}{f': {because}' if because else '.'}"
        decision = _decision(version, registry, promoted=True, reason=reason)
        renew()
        if champion:
            reason = f"Version {version.version} was appointed by hand in its place{f': {because}' if because else '.'}"
            withdrawn = _decision(champion, registry, promoted=False, reason=reason)
            registry.set_tags(champion, _verdict(withdrawn, WITHDRAWN))
        registry.set_tags(version, _verdict(decision, "appointed"))
        renew()
        if champion:
            registry.set_alias(name, "previous", champion.version)
        registry.set_alias(name, "champion", version.version)
    return decision


def model_uri(address: str) -> str:
    """models:/NAME/VERSION or models:/NAME@ALIAS of NAME@VERSION or NAME@ALIAS, which is shorter to type."""
    if address.startswith("models:"):
        return address
    name, _, which = address.partition("@")
    return f"models:/{name}/{which}" if which.isdecimal() else f"models:/{address}"


def evaluation_of(version: ModelVersion, registry: Registry) -> EvaluationReport | None:
    """The report that a version was registered with, if it can still be read."""
    try:
        return EvaluationReport.model_validate_json(store().read(registry.model_tags(version)["evaluation"]))
    except (KeyError, MissingObject):
        return None


def spec_of(version: ModelVersion) -> RunSpec | None:
    """The spec that a version was made from, if it can still be read."""
    run_key = version.tags.get("run_key")
    return store().get_record(f"runs/{run_key}/spec.json", RunSpec) if run_key else None


def decide(
    challenger: ModelVersion,
    scores: EvaluationReport | None,
    champion: ModelVersion | None,
    champion_scores: EvaluationReport | None,
) -> Promotion:
    """The rule. A challenger that has collapsed never becomes champion, whatever its other numbers, and none without a
    finite primary metric; without a champion any other does; with one it must have been judged alike, on the same
    data, and be better beyond the noise."""
    metric = _primary(scores)

    def answer(promoted: bool, reason: str, other: Metric | None = None) -> Promotion:
        return Promotion(
            name=challenger.name,
            version=challenger.version,
            promoted=promoted,
            reason=reason,
            metric=scores.primary if scores else "none",
            challenger=metric.value if metric else math.nan,
            champion=other.value if other else None,
            champion_version=champion.version if champion else None,
        )

    if reason := collapse(challenger):
        return answer(False, reason)
    if scores is None or metric is None:
        return answer(False, "The challenger has no finite primary metric; evaluate it again.")
    if champion is None:
        return answer(True, f"There was no champion; {metric.name} is {metric.with_interval}.")
    other = _primary(champion_scores)
    if champion_scores is None or other is None:
        return answer(
            False, f"Version {champion.version}, the champion, has no finite primary metric; evaluate it again."
        )
    if differences := incomparable(scores, champion_scores):
        return answer(
            False,
            f"Judged by another {' and '.join(differences)} than version {champion.version}, so no number decides; "
            "`genmodels promote` does.",
            other,
        )
    gain, noise = gain_and_noise(metric, other)
    numbers = f"{metric.name} {metric.with_interval} against {other.with_interval} of version {champion.version}"
    if gain > noise:
        return answer(True, f"Better beyond the noise: {numbers}; the gain of {gain:.4g} exceeds {noise:.4g}.", other)
    return answer(
        False, f"Not better beyond the noise: {numbers}; the gain of {gain:.4g} does not exceed {noise:.4g}.", other
    )


def collapse(version: ModelVersion) -> str | None:
    """How a version has collapsed, as the guards of its training measured its weights, in a sentence; None if not."""
    for guard, (limit, how) in COLLAPSED.items():
        if (value := version.tags.get(f"guard.{guard}")) and not float(value) <= limit:
            return f"It has collapsed: {how.format(value)}."
    return None


def _verdict(decision: Promotion, verdict: str) -> dict[str, str]:
    return {"gate": decision.model_dump_json(), "gate.verdict": verdict, "gate.reason": decision.reason}


def _decision(version: ModelVersion, registry: Registry, *, promoted: bool, reason: str) -> Promotion:
    """A person's decision, with the version's own number for the record."""
    scores = evaluation_of(version, registry)
    metric = _primary(scores)
    return Promotion(
        name=version.name,
        version=version.version,
        promoted=promoted,
        reason=reason,
        metric=scores.primary if scores else "none",
        challenger=metric.value if metric else math.nan,
    )


def gain_and_noise(challenger: Metric, champion: Metric) -> tuple[float, float]:
    """How much better the challenger is, and how much it must be for the interval of the difference to leave zero out.

    The interval of a difference from the intervals of its terms is MOVER's (Zou & Donner, Statistics in Medicine 2008,
    equation 1): each term's distance to the end that faces the other one, added in squares.
    """
    if challenger.better == "lower":
        gain = champion.value - challenger.value
        ours = challenger.high - challenger.value
        theirs = champion.value - champion.low
    else:
        gain = challenger.value - champion.value
        ours = challenger.value - challenger.low
        theirs = champion.high - champion.value
    return gain, math.hypot(ours, theirs)


def _primary(scores: EvaluationReport | None) -> Metric | None:
    try:
        metric = scores.metric(scores.primary) if scores else None
    except KeyError:
        return None
    return metric if metric and metric.is_finite else None
