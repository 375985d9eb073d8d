"""Who becomes champion: the rule on plain numbers, and its effect on the real registry."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest
from finished_run import evaluated, prepared

from genmodels.errors import SpecError, UnavailableError
from genmodels.settings import Settings
from genmodels.spec import EvaluationReport, GuardsSpec, Metric, RunSpec
from genmodels.steps.reports import report_key
from genmodels.storage.objects import store
from genmodels.tracking.lease import lease
from genmodels.tracking.promotion import COLLAPSED, appoint, decide, promote
from genmodels.tracking.registry import ModelVersion, Registry
from genmodels.tracking.rest import TrackingServer


def version(number: int) -> ModelVersion:
    return ModelVersion("m.d", number, model_id="", run_id="", tags={}, aliases=[])


def scores(value: float, low: float, high: float, **changes: object) -> EvaluationReport:
    better = changes.pop("better", "lower")
    metric = Metric(name="fid_classifier", value=value, low=low, high=high, better=better)  # type: ignore[arg-type]
    fields = {"primary": "fid_classifier", "metrics": [metric], "protocol": {"images": 256}} | changes
    return EvaluationReport(run_key="0", pictures={}, seconds=0, **fields)  # type: ignore[arg-type]


def test_a_gain_must_exceed_the_noise_of_the_difference():
    """Half-widths 3 and 4 make 5: a gain of 5.1 is one, of 4.9 is not. The ends that face away do not count."""
    champion = scores(100.0, 96.0, 1000.0)
    assert decide(version(2), scores(94.9, 0.0, 97.9), version(1), champion).promoted
    assert not decide(version(2), scores(95.1, 0.0, 98.1), version(1), champion).promoted


def test_more_is_better_where_the_metric_says_so():
    champion = scores(0.50, 0.1, 0.53, better="higher")
    assert decide(version(2), scores(0.56, 0.52, 0.9, better="higher"), version(1), champion).promoted
    assert not decide(version(2), scores(0.54, 0.50, 0.9, better="higher"), version(1), champion).promoted
    assert not decide(version(2), scores(0.30, 0.29, 0.31, better="higher"), version(1), champion).promoted


def test_the_first_one_is_champion():
    decision = decide(version(1), scores(5.0, 4.0, 6.0), None, None)
    assert decision.promoted
    assert decision.champion is None
    assert "There was no champion" in decision.reason


@pytest.mark.parametrize("champion", [None, scores(100.0, 99.0, 101.0)], ids=["alone", "beside a champion"])
@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"guard.mode_collapse": "87.3"}, "its images are 87.3 times closer together than real ones"),
        ({"guard.low_diversity": "inf"}, "its images differ inf times less from each other than real ones"),
        (
            {"guard.lost_classes": "9.8"},
            "the classes of its images have 9.8 nats less entropy than those of real ones",
        ),
        (
            {"guard.mode_collapse": "1.1", "guard.lost_classes": "nan"},
            "the classes of its images have nan nats less entropy",
        ),
    ],
)
def test_a_collapsed_model_is_refused_whatever_its_other_numbers(
    champion: EvaluationReport | None, tags: dict[str, str], reason: str
):
    """With the best score, and even where there is no champion."""
    decision = decide(replace(version(2), tags=tags), scores(1.0, 0.9, 1.1), champion and version(1), champion)
    assert not decision.promoted
    assert decision.reason.startswith(f"It has collapsed: {reason}")


def test_another_guards_objection_and_values_within_the_limits_are_no_reason_to_refuse():
    values = {f"guard.{name}": f"{limit:.4g}" for name, (limit, _) in COLLAPSED.items()}
    tags = values | {"guard.objections": "oscillation, lost_classes", "guard.oscillation": "99"}
    assert decide(replace(version(2), tags=tags), scores(1.0, 0.9, 1.1), None, None).promoted


def test_what_the_gate_asks_for_is_what_guards_measure():
    assert set(COLLAPSED) <= set(GuardsSpec.model_fields)


@pytest.mark.parametrize(
    ("challenger", "reason"),
    [
        (None, "no finite primary metric"),
        (scores(math.nan, math.nan, math.nan), "no finite primary metric"),
        (scores(1.0, -math.inf, 1.0), "no finite primary metric"),
        (scores(1.0, 0.9, 1.1, primary="kid_classifier"), "no finite primary metric"),
        (scores(1.0, 0.9, 1.1, protocol={"images": 128}), "another images than version 1, so no number decides"),
        (scores(5.0, 4.9, 5.1), "Not better beyond the noise"),
    ],
)
def test_what_is_not_comparable_or_not_better_stays_challenger(challenger: EvaluationReport | None, reason: str):
    decision = decide(version(2), challenger, version(1), scores(5.0, 4.9, 5.1))
    assert not decision.promoted
    assert reason in decision.reason


def test_what_only_one_was_asked_for_keeps_no_number_from_deciding():
    """An unconditional model has no label agreement, which a conditional one of the same name has."""
    told = scores(1.0, 0.9, 1.1, protocol={"images": 256, "label_agreement": "classes", "codes": {"prior": True}})
    assert decide(version(2), told, version(1), scores(5.0, 4.9, 5.1, protocol={"images": 256})).promoted


def test_a_likelihood_of_other_levels_or_given_the_label_decides_nothing():
    def of(**density: object) -> EvaluationReport:
        metric = Metric(name="bits_per_dim", value=float(density["levels"]), low=0, high=9)  # type: ignore[arg-type]
        return scores(0, 0, 0, primary=metric.name, metrics=[metric], protocol={"density": density})

    for other in (of(levels=256, given="nothing"), of(levels=2, given="label")):
        decision = decide(version(2), of(levels=2, given="nothing"), version(1), other)
        assert decision.reason.startswith("Judged by another kind of likelihood than version 1")


def registered(seed: int, value: float) -> RunSpec:
    """An evaluated run whose version in the registry is made of a model without files."""
    spec = prepared("progressive_gan", "digits", "resolution=4").model_copy(update={"seed": seed})
    evaluated(spec, value=value)
    tags = {"run_key": spec.run_key, "evaluation": store().uri(report_key("evaluate", spec))}
    model = TrackingServer().post(
        "logged-models",
        experiment_id="0",
        name="without-files",
        tags=[{"key": key, "value": value} for key, value in tags.items()],
    )
    model_id = model["model"]["info"]["model_id"]
    Registry().add("progressive_gan.digits", model_id=model_id, tags=tags, description="", summary="")
    return spec


def test_better_ones_replace_the_champion_and_others_do_not(without_champion: str):
    registry = Registry()
    first = promote(registered(400, 0.5))
    assert first.promoted
    assert registry.find(f"models:/{without_champion}@champion").version == first.version
    worse = promote(registered(401, 0.495))
    assert not worse.promoted
    assert worse.champion == 0.5
    assert worse.champion_version == first.version
    assert registry.find(f"models:/{without_champion}@champion").version == first.version
    better = promote(registered(402, 0.3))
    champion = registry.find(f"models:/{without_champion}@champion")
    assert better.promoted
    assert champion.version == better.version
    assert registry.find(f"models:/{without_champion}@previous").version == first.version
    assert champion.tags["gate.verdict"] == "promoted"
    assert "0.3 [0.29, 0.31]" in champion.tags["gate.reason"]
    refused = registry.find(f"models:/{without_champion}/{worse.version}")
    assert refused.tags["gate.verdict"] == "refused"


def test_a_decision_is_repeated_by_a_rerun(without_champion: str):
    spec = registered(403, 0.5)
    first = promote(spec)
    assert promote(spec) == first


def test_a_death_between_decision_and_alias_is_repaired_by_a_rerun(
    without_champion: str, monkeypatch: pytest.MonkeyPatch
):
    registry = Registry()
    old = promote(registered(404, 0.5))
    spec = registered(405, 0.2)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(Registry, "set_alias", die)
        with pytest.raises(KeyboardInterrupt):
            promote(spec)
    assert registry.find(f"models:/{without_champion}@champion").version == old.version
    again = promote(spec)
    assert again.promoted
    assert registry.find(f"models:/{without_champion}@champion").version == again.version
    assert registry.find(f"models:/{without_champion}@previous").version == old.version


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_two_at_once_the_better_one_is_champion(without_champion: str, order: tuple[int, int]):
    promote(registered(406, 0.9))
    specs = [registered(407 + 2 * order[0], 0.6), registered(408 + 2 * order[0], 0.3)]
    with ThreadPoolExecutor(2) as pool:
        decisions = list(pool.map(promote, [specs[index] for index in order]))
    best = min(decisions, key=lambda decision: decision.challenger)
    assert best.promoted
    assert Registry().find(f"models:/{without_champion}@champion").version == best.version


@pytest.mark.parametrize(("seed", "by_hand"), [(420, False), (423, True)])
def test_who_is_slower_than_its_lease_moves_no_alias(
    without_champion: str, monkeypatch: pytest.MonkeyPatch, seed: int, by_hand: bool
):
    """The second one has decided when the third, the best of all, comes and waits for the second's time to be over."""
    first = promote(registered(seed, 0.9))
    slow, best = registered(seed + 1, 0.6), registered(seed + 2, 0.3)
    uri = Registry().versions(without_champion, slow.run_key)[0].uri
    set_tags, others, decisions = Registry.set_tags, [best], []

    def set_tags_late(registry: Registry, version: ModelVersion, tags: dict[str, str]) -> None:
        set_tags(registry, version, tags)
        if others:
            decisions.append(promote(others.pop()))

    monkeypatch.setattr("genmodels.tracking.promotion.lease", partial(lease, seconds=1.0))
    monkeypatch.setattr(Registry, "set_tags", set_tags_late)
    with pytest.raises(UnavailableError, match="Somebody else took over"):
        appoint(uri) if by_hand else promote(slow)
    [decision] = decisions
    assert decision.promoted
    aliases = Registry().aliases(without_champion)
    assert aliases["champion"] == str(decision.version)
    assert aliases["previous"] == str(first.version)
    assert not promote(slow).promoted


def test_a_champion_whose_numbers_are_gone_is_not_replaced_unseen(without_champion: str):
    champion = registered(412, 0.5)
    promote(champion)
    store().delete([report_key("evaluate", champion)])
    decision = promote(registered(413, 0.1))
    assert not decision.promoted
    assert "the champion, has no finite primary metric" in decision.reason


def test_a_person_puts_an_earlier_version_back_and_it_stays(without_champion: str):
    registry, name = Registry(), without_champion
    first, spec = promote(registered(415, 0.5)), registered(416, 0.2)
    second = promote(spec)
    assert second.promoted
    back = appoint(f"{name}@previous", "version two dreams of sheep")
    assert back.version == first.version
    assert back.challenger == 0.5
    assert back.reason == f"Appointed by hand in the place of version {second.version}: version two dreams of sheep"
    assert registry.find(f"models:/{name}@champion").version == first.version
    assert registry.find(f"models:/{name}@previous").version == second.version
    withdrawn = registry.find(f"models:/{name}/{second.version}").tags
    assert withdrawn["gate.verdict"] == "withdrawn"
    assert withdrawn["gate.reason"].endswith("in its place: version two dreams of sheep")

    again = promote(spec)
    assert not again.promoted
    assert again.reason == withdrawn["gate.reason"], "its own run, done again, does not bring it back"
    assert registry.find(f"models:/{name}@champion").version == first.version

    appoint(f"{name}@{second.version}")
    assert registry.find(f"models:/{name}@champion").version == second.version
    assert promote(spec).promoted


def test_appointing_the_champion_changes_nothing(without_champion: str):
    first = promote(registered(417, 0.5))
    assert appoint(f"models:/{without_champion}/{first.version}").reason.endswith("is the champion already.")
    assert Registry().aliased(without_champion, "previous") is None


def test_a_death_within_a_rollback_is_repaired_by_another_try(without_champion: str, monkeypatch: pytest.MonkeyPatch):
    first, second = promote(registered(418, 0.5)), promote(registered(419, 0.2))

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(Registry, "set_alias", die)
        with pytest.raises(KeyboardInterrupt):
            appoint(f"{without_champion}@{first.version}")
    assert Registry().find(f"models:/{without_champion}@champion").version == second.version
    appoint(f"{without_champion}@{first.version}")
    assert Registry().find(f"models:/{without_champion}@champion").version == first.version


@pytest.mark.parametrize("address", ["progressive_gan.digits", "progressive_gan.digits@", "@3", "nobody@1"])
def test_who_is_not_there_is_not_appointed(without_champion: str, address: str):
    with pytest.raises(SpecError):
        appoint(address)


def test_what_is_not_registered_is_not_promoted(tracking: Settings):
    with pytest.raises(SpecError, match="`register` it first"):
        promote(prepared("progressive_gan", "digits").model_copy(update={"seed": 414}))
