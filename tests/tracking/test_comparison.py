"""Who stands where among the registered models of a data set, and who cannot be compared with whom."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judged_version import judged_version, metric

from genmodels.errors import SpecError
from genmodels.settings import Settings
from genmodels.spec import Metric
from genmodels.tracking.comparison import compare, places
from genmodels.tracking.promotion import gain_and_noise
from genmodels.tracking.registry import Registry
from genmodels.tracking.rest import TrackingServer

INTERVALS = st.tuples(*(st.floats(low, 10, allow_nan=False) for low in (-10, 0, 0)))


def test_places_of_known_intervals():
    """Half-widths 0.3 and 0.4 make 0.5, and 0.4 and 0.4 make 0.57: the second is no worse than the first, the third is
    worse than both. What is not finite has no place."""
    scores = {"first": metric("fid", 1.0, 0.3), "second": metric("fid", 1.4, 0.4), "third": metric("fid", 2.0, 0.4)}
    assert places(scores | {"broken": metric("fid", math.nan)}) == {"first": 1, "second": 1, "third": 3}
    best_is_highest = {name: each.model_copy(update={"better": "higher"}) for name, each in scores.items()}
    assert places(best_is_highest) == {"first": 2, "second": 2, "third": 1}


@settings(max_examples=100, deadline=None)
@given(st.lists(INTERVALS, min_size=2, max_size=6))
def test_of_equal_places_none_is_better_beyond_the_noise(intervals: list[tuple[float, float, float]]):
    scores = {
        str(index): Metric(name="fid", value=value, low=value - below, high=value + above)
        for index, (value, below, above) in enumerate(intervals)
    }
    found = places(scores)
    for one, ours in scores.items():
        for other, theirs in scores.items():
            gain, noise = gain_and_noise(ours, theirs)
            if gain > noise + 1e-9:
                assert found[one] < found[other]


def test_versions_of_one_model_are_told_apart_by_the_settings_that_they_do_not_share(tracking: Settings):
    shared = {"latent": 64, "rates": {"generator": 1e-3}}
    for number, changes in enumerate(({"loss": "hinge"}, {"loss": "lsgan", "rates": {"generator": 2e-3}})):
        judged_version("gan", "apart", metric("fid", 5.0), seed=number, config=shared | changes)
    judged_version("vae", "apart", metric("fid", 5.0), config={"latent": 8})
    one, other, vae = sorted(compare("apart", every_version=True).contenders, key=lambda each: each.label)
    assert one.settings == {"loss": "hinge", "rates.generator": "0.001"}
    assert other.set_apart == "rates.generator=0.002, loss=lsgan"
    assert vae.settings == {}


def test_a_version_without_a_run_is_left_out(tracking: Settings):
    judged = judged_version("gan", "runless", metric("fid", 5.0))
    tags = {**judged.tags, "run_key": "0" * 64}
    Registry().add(judged.name, model_id=judged.model_id, tags=tags, description="", summary="")
    compared = compare("runless", every_version=True)
    assert [contender.version for contender in compared.contenders] == [1]
    assert "not made by `genmodels`" in compared.left_out["gan.runless version 2"]


def test_models_of_all_axes_are_ranked_on_those_they_were_judged_on(tracking: Settings):
    wasserstein = {"floor": 1.0, "untrained": 9.0}
    judged_version("gan", "axes", metric("sliced_wasserstein", 5.0, **wasserstein), seconds=600)
    judged_version(
        "vae",
        "axes",
        metric("bits_per_dim", 2.0, note="lower bound, 256 levels"),
        metric("bits_per_dim_of_independent_pixels", 4.0),
        metric("sliced_wasserstein", 5.1, **wasserstein),
        metric("a_metric_of_tomorrow", 0.5, better="higher"),
        metric("reconstruction_psnr", 20.0, better="higher"),
        protocol={"task": "density, samples, codes", "density": {"levels": 256, "given": "nothing"}},
    )
    judged_version(
        "autoencoder",
        "axes",
        metric("reconstruction_psnr", 30.0, better="higher"),
        protocol={"task": "codes"},
        not_offered={"generation": "Autoencoder makes no new images."},
    )
    [board] = compare("axes").leaderboards
    assert board.why_apart == ""
    assert [column.name for column in board.columns] == [
        *("sliced_wasserstein", "a_metric_of_tomorrow", "reconstruction_psnr", "bits_per_dim, 256 levels")
    ]
    wasserstein_column, tomorrow, psnr, bits = board.columns
    assert wasserstein_column.places == {"gan v1": 1, "vae v1": 1}
    assert wasserstein_column.is_tied("gan v1")
    assert wasserstein_column.floor == 1.0
    assert tomorrow.axis == "generation"
    assert psnr.places == {"autoencoder v1": 1, "vae v1": 2}
    assert not psnr.is_tied("vae v1")
    assert bits.baselines == {"independent pixels": 4.0}
    assert board.contenders[1].metrics[bits.name].note == "lower bound"  # the levels are in the column's name
    assert [contender.label for contender in board.contenders] == ["gan v1", "vae v1", "autoencoder v1"]
    gan, vae, autoencoder = board.contenders
    assert (gan.density, vae.density, autoencoder.density) == ("implicit", "explicit, approximate", "none")
    assert gan.seconds == 600
    assert gan.images_per_second == 100
    assert gan.parameters == {"encoder": 1_500, "decoder": 2_000_000}
    assert autoencoder.shows == "reconstructions"
    assert board.not_judged("generation") == {"autoencoder v1": "Autoencoder makes no new images."}


def test_likelihoods_of_other_levels_or_given_the_label_have_columns_of_their_own(tracking: Settings):
    """And so has what every pixel for itself scores at as many levels."""
    settings = {"256": {"levels": 256}, "2": {"levels": 2}, "told": {"levels": 2, "given": "label"}}
    for seed, density in enumerate(settings.values()):
        baseline = metric("bits_per_dim_of_independent_pixels", float(density["levels"]))
        scores = metric("bits_per_dim", 1.0), baseline
        judged_version("vae", "levels", *scores, protocol={"density": density}, seed=seed)
    [board] = compare("levels", every_version=True).leaderboards
    assert {column.name: (column.places, column.baselines) for column in board.columns} == {
        "bits_per_dim, 256 levels": ({"vae v1": 1}, {"independent pixels": 256}),
        "bits_per_dim, 2 levels": ({"vae v2": 1}, {"independent pixels": 2}),
        "bits_per_dim, 2 levels, given the label": ({"vae v3": 1}, {"independent pixels": 2}),
    }


def test_the_champion_stands_for_its_model_and_the_newest_where_there_is_none(tracking: Settings):
    for seed in range(3):
        judged_version("vae", "chosen", metric("fid_classifier", 1.0), seed=seed)
        judged_version("gan", "chosen", metric("fid_classifier", 2.0), seed=seed)
    Registry().set_alias("vae.chosen", "champion", 2)
    assert [contender.label for contender in compare("chosen").contenders] == ["vae v2", "gan v3"]
    assert compare("chosen").contenders[0].aliases == ["champion"]
    assert len(compare("chosen", every_version=True).contenders) == 6


def test_what_was_judged_otherwise_is_set_apart_with_the_reason(tracking: Settings):
    extractor = {"extractors": {"classifier": {"weights": "1"}}}
    for model in ("vae", "gan", "dcgan"):
        judged_version(model, "apart", metric("fid_classifier", 1.0), protocol=extractor)
    other = {"extractors": {"classifier": {"weights": "2"}}}
    judged_version("flow", "apart", metric("fid_classifier", 0.1), protocol=other)
    judged_version("infogan", "apart", metric("fid_classifier", 0.1), data="b" * 64, protocol=other)
    first, by_another_extractor, on_other_data = compare("apart").leaderboards
    assert {contender.model for contender in first.contenders} == {"vae", "gan", "dcgan"}
    assert by_another_extractor.why_apart == (
        "Judged otherwise (extractors.classifier.weights), so no number can be compared with those above; the "
        "flow `evaluate-again` judges all of them alike."
    )
    assert by_another_extractor.columns[0].places == {"flow v1": 1}
    assert on_other_data.why_apart.startswith("Judged on other data: their digest is bbbbbbbb, not aaaaaaaa, so no ")


def test_what_only_one_model_was_asked_for_does_not_contradict_another(tracking: Settings):
    less = {"extractors": {"classifier": {"size": 8}}, "label_agreement": False}
    judged_version("vae", "more", metric("fid_classifier", 1.0), protocol=less)
    more = {"extractors": {"classifier": {"size": 8}, "inception": {"size": 299}}, "label_agreement": True}
    judged_version("gan", "more", metric("fid_classifier", 1.0), metric("fid_inception", 1.0), protocol=more)
    [board] = compare("more").leaderboards
    assert board.protocol["extractors.inception.size"] == 299


def test_a_version_that_was_never_judged_is_left_out_with_the_reason(tracking: Settings):
    judged_version("vae", "stranger", metric("fid_classifier", 1.0))
    model = TrackingServer().post("logged-models", experiment_id="0", name="of-another-tool")
    tags = {"run_key": "none"}
    model_id = model["model"]["info"]["model_id"]
    Registry().add("theirs.stranger", model_id=model_id, tags=tags, description="", summary="")
    compared = compare("stranger")
    assert [contender.label for contender in compared.contenders] == ["vae v1"]
    assert list(compared.left_out) == ["theirs.stranger version 1"]
    assert "no evaluation that can be read" in compared.left_out["theirs.stranger version 1"]


def test_a_data_set_without_registered_models_is_refused(tracking: Settings):
    judged_version("vae", "flowers_of_a_kind", metric("fid_classifier", 1.0))
    with pytest.raises(SpecError, match="did you mean flowers_of_a_kind"):
        compare("flowers_of_kind")


def test_a_folder_is_named_as_it_was_given_to_retrain(tracking: Settings):
    judged_version("vae", "folder:/data/My Photos", metric("fid_classifier", 1.0))
    assert [contender.name for contender in compare("folder:/data/My Photos").contenders] == [
        "vae.folder__data_my_photos"
    ]
