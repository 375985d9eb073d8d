"""Evaluating on the real object store: digits and photographs, models with known places between floor and ceiling."""

import hashlib
import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from finished_run import finished_run
from inception_weights import random_weights
from PIL import Image

from genmodels.data import sprites
from genmodels.data.manifest import factor_column, open_dataset
from genmodels.errors import DataError, SpecError
from genmodels.evaluation import extractors, reals
from genmodels.evaluation.extractors import INCEPTION, find_classifier
from genmodels.evaluation.images import as_stored
from genmodels.evaluation.pictures import CAPTION_PIXELS, LINE_PIXELS, MARGIN, PLOT_PIXELS, TILE_PIXELS
from genmodels.models.base import Samples
from genmodels.settings import Settings
from genmodels.spec import EvaluationReport, EvaluationSpec, RunSpec
from genmodels.steps import evaluate as step
from genmodels.steps.costs import costs_of
from genmodels.steps.evaluate import evaluate
from genmodels.steps.jobs import Job, RayJobs
from genmodels.steps.register import register
from genmodels.steps.reports import folder, load_report, read_progress, report_key
from genmodels.storage.objects import MissingObject, store
from genmodels.tracking.registry import Registry

SHEET = 8 * (TILE_PIXELS + LINE_PIXELS) + LINE_PIXELS  # a side of a grid of 64 images


def unjudged(*what: str, preset: str = "demo", seed: int) -> RunSpec:
    """A run with weights as they are drawn and without its evaluation."""
    spec = finished_run(*what, preset=preset, seed=seed)
    store().delete([report_key("evaluate", spec)])
    return spec


def some(number: float | None) -> float:
    assert number is not None
    return number


def test_an_untrained_model_is_at_its_ceiling_and_real_data_at_its_floor(s3: Settings):
    spec = unjudged("progressive_gan", "digits", seed=300)
    report = evaluate(spec)
    names = [metric.name for metric in report.metrics]
    assert names == [
        "sliced_wasserstein",
        "sliced_wasserstein_8",
        "fid_classifier",
        "kid_classifier",
        "precision_classifier",
        "recall_classifier",
        "density_classifier",
        "coverage_classifier",
        "modes_classifier",
        "mode_divergence_classifier",
        "ms_ssim_1_scales",
        "training_distance_ratio",
        "perceptual_path_length_classifier",
    ]
    assert report.primary == "sliced_wasserstein"
    assert report.protocol["images"] == 180
    for metric in report.metrics:
        assert metric.value == pytest.approx(metric.untrained, rel=1e-4)
        # Noise may well be more diverse than digits, and farther from those of the training set: no gap to close.
        if metric.name in {"ms_ssim_1_scales", "training_distance_ratio", "perceptual_path_length_classifier"}:
            continue
        assert metric.gap_closed == pytest.approx(0, abs=1e-3)
        assert metric.low <= metric.value <= metric.high  # equal where no sample lies among the real images
    assert report.metric("modes_classifier").note == "of 10, in 180 samples"
    assert report.metric("modes_classifier").value < some(report.metric("modes_classifier").floor) == 10
    for name in ("precision_classifier", "coverage_classifier"):
        assert report.metric(name).high < 0.6 < some(report.metric(name).floor)
    assert report.metric("training_distance_ratio").value > 1.5
    primary, kid = report.metric("sliced_wasserstein"), report.metric("kid_classifier")
    assert primary.value > 3 * some(primary.floor)
    assert abs(some(kid.floor)) < 0.15 * kid.value  # unbiased: zero but for noise
    assert set(report.not_offered) == {"inception", "density", "representation"}
    assert "colour" in report.not_offered["inception"]
    assert "only by drawing" in report.not_offered["density"]

    sheet = Image.open(io.BytesIO(store().read(report.pictures["samples"])))
    assert sheet.width > sheet.height > 8 * 64
    progress = read_progress("evaluate", spec)
    assert progress
    assert progress.done == progress.total
    assert progress.unit == "images"
    assert evaluate(spec) == report  # and nothing is judged twice


def test_a_model_that_draws_the_training_set_closes_the_whole_gap(s3: Settings, monkeypatch):
    spec = unjudged("progressive_gan", "digits", seed=301)
    _, dataset = open_dataset("digits", str(spec.dataset_digest))
    train = dataset.table("train")

    def load_memory(spec: RunSpec) -> torch.nn.Module:
        model = step.untrained(spec)
        rows = np.random.default_rng(1).permutation(train.rows)
        images = torch.from_numpy(train.read("image@8", rows)).float() / 127.5 - 1
        drawn = iter(images)
        monkeypatch.setattr(model, "sample", lambda n, **_: torch.stack([next(drawn) for _ in range(n)]))
        return model

    monkeypatch.setattr(step, "load_trained", load_memory)
    report = evaluate(spec)
    for name in ("sliced_wasserstein", "fid_classifier", "kid_classifier", "mode_divergence_classifier"):
        assert report.metric(name).gap_closed == pytest.approx(1, abs=0.15)
    assert report.metric("modes_classifier").gap_closed == 1
    for name in ("precision_classifier", "recall_classifier", "density_classifier", "coverage_classifier"):
        metric = report.metric(name)
        assert metric.value == pytest.approx(metric.floor, abs=0.15)
    assert report.metric("training_distance_ratio").value == report.metric("training_distance_ratio").high == 0
    copies = np.asarray(Image.open(io.BytesIO(store().read(report.pictures["training_neighbours"]))))
    made, found = (copies[CAPTION_PIXELS:, MARGIN + i * (MARGIN + SHEET) :][:SHEET, :SHEET] for i in range(2))
    assert np.array_equal(made, found)


def test_points_are_judged_by_their_coordinates_and_not_rounded(s3: Settings, monkeypatch):
    """Of a model that draws the training set: all modes, and 1 - exp(-9 / 2) of the points near one."""
    monkeypatch.setattr(reals, "MOST_IMAGES", 2_000)
    spec = unjudged("gan", "gaussians_8", preset="points", seed=304)
    _, dataset = open_dataset("gaussians_8", str(spec.dataset_digest))
    train = dataset.table("train")

    def load_memory(spec: RunSpec) -> torch.nn.Module:
        model = step.untrained(spec)
        drawn = iter(torch.from_numpy(train.read("image@1", np.random.default_rng(1).permutation(train.rows)[:2_000])))
        monkeypatch.setattr(model, "sample", lambda n, **_: torch.stack([next(drawn) for _ in range(n)]))
        return model

    monkeypatch.setattr(step, "load_trained", load_memory)
    report = evaluate(spec)
    assert [metric.name for metric in report.metrics] == [
        "sliced_wasserstein_absolute",
        "sliced_wasserstein_absolute_1",
        "fid_coordinates",
        "kid_coordinates",
        "precision_coordinates",
        "recall_coordinates",
        "density_coordinates",
        "coverage_coordinates",
        "modes",
        "high_quality",
        "training_distance_ratio",
        "perceptual_path_length_coordinates",
    ]
    assert report.primary == "sliced_wasserstein_absolute"
    modes, high_quality = report.metric("modes"), report.metric("high_quality")
    assert (modes.value, modes.floor, modes.low, modes.untrained) == (8, 8, 8, 0)
    assert high_quality.value == pytest.approx(1 - math.exp(-4.5), abs=0.008)
    assert high_quality.floor == pytest.approx(1 - math.exp(-4.5), abs=0.008)
    assert report.metric("fid_coordinates").gap_closed == pytest.approx(1, abs=0.05)
    for name in ("precision_coordinates", "recall_coordinates", "density_coordinates", "coverage_coordinates"):
        assert report.metric(name).value == pytest.approx(report.metric(name).floor, abs=0.05)
    assert report.metric("training_distance_ratio").value == 0
    assert set(report.not_offered) == {"classifier", "inception", "ms_ssim", "density", "representation"}
    assert report.protocol["generation"]["pixels"] == "not rounded"
    sheet = Image.open(io.BytesIO(store().read(report.pictures["samples"])))
    assert sheet.size == (3 * MARGIN + 2 * PLOT_PIXELS, CAPTION_PIXELS + PLOT_PIXELS + MARGIN)


def test_scores_of_another_protocol_are_made_again(s3: Settings):
    spec = unjudged("progressive_gan", "digits", seed=302)
    first = evaluate(spec)
    outdated = first.model_copy(update={"protocol": first.protocol | {"version": 0}, "metrics": first.metrics[:1]})
    store().put_record(report_key("evaluate", spec), outdated)
    again = evaluate(spec)
    progress = read_progress("evaluate", spec)
    assert progress
    assert progress.done == progress.total  # though floor and baselines were there already
    assert again.protocol == first.protocol
    assert again.metrics == first.metrics


def test_the_classifier_is_trained_once_and_knows_digits(s3: Settings, monkeypatch):
    spec = unjudged("progressive_gan", "digits", seed=303)
    manifest, dataset = open_dataset("digits", str(spec.dataset_digest))
    cpu, quiet = torch.device("cpu"), lambda done, total: None
    first = find_classifier(manifest, dataset, cpu, quiet)
    assert first.accuracy > 0.95
    monkeypatch.setattr(extractors, "train_classifier", pytest.fail)
    assert find_classifier(manifest, dataset, cpu, quiet) == first


def test_a_translation_is_judged_in_its_target_domain_and_back(s3: Settings):
    spec = unjudged("cyclegan", "photos", "resolution=16", "residual_blocks=1", "generator_channels=8", seed=304)
    report = evaluate(spec)
    metrics = {metric.name: metric for metric in report.metrics}
    measures = ("fid", "kid", "precision", "recall", "density", "coverage")
    assert set(metrics) == {
        "sliced_wasserstein_absolute",
        "sliced_wasserstein_absolute_16_to_a",
        "sliced_wasserstein_absolute_16_to_b",
        *(f"{name}_classifier_to_{domain}" for name in measures for domain in "ab"),
        "cycle_error_a",
        "cycle_error_b",
        "sliced_wasserstein_absolute_untranslated",
    }
    halves = [
        metrics["sliced_wasserstein_absolute_16_to_a"].value,
        metrics["sliced_wasserstein_absolute_16_to_b"].value,
    ]
    assert metrics["sliced_wasserstein_absolute"].value == pytest.approx(sum(halves) / 2)
    assert metrics["cycle_error_a"].floor == 0 < metrics["cycle_error_a"].value < 1
    untranslated = metrics["sliced_wasserstein_absolute_untranslated"]
    assert 0 < some(metrics["sliced_wasserstein_absolute"].floor) < untranslated.value
    assert untranslated.gap_closed is None
    assert set(report.pictures) == {"a_to_b", "b_to_a"}
    assert set(report.not_offered) == {"inception", "density", "representation"}
    assert all(math.isfinite(metric.value) for metric in report.metrics)


def test_a_conditional_model_samples_the_held_out_classes(s3: Settings, monkeypatch):
    spec = unjudged("progressive_gan", "digits", "conditional=true", seed=308)
    _, dataset = open_dataset("digits", str(spec.dataset_digest))
    drawn = []

    def load_listening(spec: RunSpec) -> torch.nn.Module:
        model = step.untrained(spec)
        assert isinstance(model, Samples)
        sample = model.sample

        def listening(n: int, *, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            drawn.append(labels)
            return sample(n, labels=labels, generator=generator)

        monkeypatch.setattr(model, "sample", listening)
        return model

    monkeypatch.setattr(step, "load_trained", load_listening)
    agreement = evaluate(spec).metric("label_agreement_classifier")
    held_out = dataset.table("test").read("label", np.arange(180))
    assert torch.cat(drawn).bincount().tolist() == np.bincount(held_out).tolist()
    classifier = extractors.classifier_of(str(spec.dataset_digest))
    assert classifier
    assert agreement.floor == pytest.approx(classifier.accuracy)
    assert agreement.better == "higher"
    assert agreement.value < 0.4  # it has learnt nothing yet


def test_images_of_the_class_asked_for_agree_with_their_labels(s3: Settings, monkeypatch):
    """A model that draws held-out images of each class has the agreement of real data, and closes the whole gap."""
    spec = unjudged("progressive_gan", "digits", "conditional=true", seed=311)
    _, dataset = open_dataset("digits", str(spec.dataset_digest))
    images, labels = (torch.from_numpy(dataset.table("test").read(c, np.arange(180))) for c in ("image@8", "label"))

    def load_memory(spec: RunSpec) -> torch.nn.Module:
        model = step.untrained(spec)

        def sample(n: int, *, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            return torch.stack([images[classes == label][0] for label in labels]).float() / 127.5 - 1

        classes = labels
        monkeypatch.setattr(model, "sample", sample)
        return model

    monkeypatch.setattr(step, "load_trained", load_memory)
    agreement = evaluate(spec).metric("label_agreement_classifier")
    assert agreement.value > 0.9
    assert some(agreement.gap_closed) > 0.9


def test_a_model_that_only_encodes_is_judged_by_its_codes(s3: Settings):
    spec = unjudged("autoencoder", "digits", seed=309)
    report = evaluate(spec)
    metrics = {metric.name: metric for metric in report.metrics}
    assert set(metrics) == {
        "reconstruction_psnr",
        "reconstruction_ssim",
        "reconstruction_fid_classifier",
        "linear_probe_accuracy",
        "nearest_neighbour_accuracy",
        "linear_probe_accuracy_of_pixels",
        "nearest_neighbour_accuracy_of_pixels",
    }
    assert report.primary == "reconstruction_psnr"
    for metric in metrics.values():
        assert metric.better == ("lower" if metric.name == "reconstruction_fid_classifier" else "higher")
        assert metric.low < metric.value < metric.high
        if not metric.name.endswith("pixels"):
            assert metric.value == pytest.approx(metric.untrained, rel=1e-4)  # its weights are as they were drawn
    assert metrics["reconstruction_psnr"].floor == 58.9
    assert metrics["reconstruction_fid_classifier"].floor == 0
    assert metrics["reconstruction_fid_classifier"].gap_closed == pytest.approx(0, abs=1e-3)
    assert set(report.protocol["extractors"]) == {"classifier"}
    for name in ("reconstruction_ssim", "linear_probe_accuracy", "nearest_neighbour_accuracy"):
        assert metrics[name].floor == 1
        assert metrics[name].gap_closed == pytest.approx(0, abs=1e-3)
    assert metrics["linear_probe_accuracy_of_pixels"].value > 0.8
    assert {"density", "generation"} < set(report.not_offered)
    assert set(report.pictures) == {"reconstructions", "traversals", "interpolations_of_images"}
    progress = read_progress("evaluate", spec)
    assert progress
    assert progress.done == progress.total


def test_a_model_that_can_everything_is_judged_by_everything_and_first_by_its_density(s3: Settings):
    spec = unjudged("vae", "digits", "evaluation.iwae_samples=2", seed=310)
    report = evaluate(spec)
    metrics = {metric.name: metric for metric in report.metrics}
    assert {"sliced_wasserstein", "reconstruction_psnr", "linear_probe_accuracy", "prior_mmd"} < set(metrics)
    assert report.primary == "bits_per_dim"
    bits, nats = metrics["bits_per_dim"], metrics["nats"]
    assert nats.value == pytest.approx(bits.value * 64 * math.log(2))
    assert bits.value == pytest.approx(bits.untrained, rel=1e-4)
    assert bits.better == "lower"
    assert bits.title == "bits_per_dim (lower bound of 2 importance samples, 17 levels)"
    elbo = metrics["elbo_nats"]
    assert elbo.title == "elbo_nats (lower bound, the ELBO, 17 levels)"
    assert elbo.value > nats.value
    independent = metrics["bits_per_dim_of_independent_pixels"]
    assert 0 < independent.value < min(bits.value, math.log2(17))
    assert independent.note == "exact, 17 levels"
    assert metrics["prior_mmd"].floor == 0
    assert metrics["prior_mmd"].note.endswith("if codes follow the prior")
    assert 0 <= metrics["active_units"].value <= 10
    assert metrics["active_units"].note == "of 10"
    assert metrics["perceptual_path_length_classifier"].value > 0
    assert report.protocol["task"] == "density, samples, codes, interpolations"
    assert report.protocol["density"]["levels"] == 17
    assert set(report.not_offered) == {"inception"}
    assert set(report.pictures) - {"latent_arithmetic"} == {  # which takes images of three classes
        *("samples", "training_neighbours"),
        *("reconstructions", "traversals", "interpolations_of_images", "aggregated_posterior"),
        *("interpolations", "linear_interpolations"),
    }
    progress = read_progress("evaluate", spec)
    assert progress
    assert progress.done == progress.total


def test_another_number_of_importance_samples_judges_the_same_weights_again(s3: Settings):
    few = unjudged("vae", "digits", "evaluation.iwae_samples=1", seed=319)
    first = evaluate(few)
    many = few.model_copy(update={"evaluation": EvaluationSpec(iwae_samples=20)})
    assert (many.run_key, report_key("evaluate", many)) == (few.run_key, report_key("evaluate", few))
    assert load_report("evaluate", few, EvaluationReport) == first
    assert load_report("evaluate", many, EvaluationReport) is None
    second = evaluate(many)
    assert load_report("evaluate", many, EvaluationReport) == second
    assert second.metric("nats").note == "lower bound of 20 importance samples, 17 levels"
    assert second.metric("nats").value < first.metric("nats").value == first.metric("elbo_nats").value
    assert second.metric("elbo_nats") == first.metric("elbo_nats")
    assert first.protocol["density"] != second.protocol["density"]


@pytest.mark.parametrize(
    ("name", "settings", "tasks", "likelihood"),
    [
        ("adversarial_autoencoder", ["hidden=[8]"], "samples, codes, interpolations", None),
        ("pixelcnn", ["features=4", "layers=1", "head_features=4"], "density, samples", "exact, "),
        ("pixelrnn", ["features=4", "layers=1", "head_features=4"], "density, samples", "exact, "),
        ("vqvae2", ["width=4", "prior_layers=1"], "density, samples, codes", "lower bound by the codes"),
    ],
)
def test_a_model_is_judged_by_all_that_it_can(
    s3: Settings, name: str, settings: list[str], tasks: str, likelihood: str | None
):
    report = evaluate(unjudged(name, "digits", *settings, seed=323))
    assert report.protocol["task"] == tasks
    firsts = {"density": "bits_per_dim", "samples": "sliced_wasserstein", "codes": "reconstruction_psnr"}
    found = {metric.name: metric for metric in report.metrics}
    assert report.primary == firsts[tasks.split(", ")[0]]
    assert {task for task, metric in firsts.items() if metric in found} == set(tasks.split(", ")) & firsts.keys()
    for metric in report.metrics:
        if metric.untrained is not None:
            assert metric.value == pytest.approx(metric.untrained, rel=1e-4)  # its weights are as they were drawn
    if likelihood is None:
        assert "only by drawing" in report.not_offered["density"]
    else:
        assert (found["bits_per_dim"].note or "").startswith(likelihood)


def test_a_flow_loses_nothing_of_an_image_and_its_likelihood_is_a_bound(s3: Settings):
    spec = unjudged("flow", "digits", "steps=1", "hidden_channels=4", seed=320)
    report = evaluate(spec)
    assert report.metric("reconstruction_psnr").value == pytest.approx(58.9)
    assert report.metric("reconstruction_fid_classifier").value == pytest.approx(0, abs=1e-4)
    note = "lower bound, the exact density of uniformly dequantised pixels, 17 levels"
    assert report.metric("bits_per_dim").note == report.metric("nats").note == note
    assert report.metric("perceptual_path_length_classifier").value > 0
    assert {"interpolations", "linear_interpolations", "interpolations_of_images"} < set(report.pictures)
    assert set(report.not_offered) == {"inception"}

    _, dataset = open_dataset("digits", str(spec.dataset_digest))
    held_out = torch.from_numpy(dataset.table("test").read("image@8", reals.judged_by(dataset.table("test"), 16)))
    sheet = np.asarray(Image.open(io.BytesIO(store().read(report.pictures["interpolations_of_images"]))))[..., 0]
    walks = sheet[CAPTION_PIXELS + LINE_PIXELS :, MARGIN + LINE_PIXELS :]
    side = TILE_PIXELS + LINE_PIXELS
    for row in range(8):
        ends = [walks[side * row :, side * column :][:TILE_PIXELS:8, :TILE_PIXELS:8] for column in (0, 8)]
        for end, image in zip(ends, (held_out[row, 0], held_out[row + 8, 0]), strict=True):
            np.testing.assert_allclose(end.astype(int), image, atol=1)  # grey 127.5 is rounded either way


def test_the_latent_manifold_of_two_dimensions_is_drawn(s3: Settings, monkeypatch):
    """By a decoder that shows the code itself: one dimension grows to the right, the other upwards."""
    spec = unjudged("vae", "digits", "latent=2", "evaluation.iwae_samples=1", seed=321)

    def load_plain(spec: RunSpec) -> torch.nn.Module:
        model = step.untrained(spec)

        def decode(codes: torch.Tensor) -> torch.Tensor:
            return codes.tanh().repeat_interleave(4, dim=1)[:, None, None].expand(-1, 1, 8, 8)

        monkeypatch.setattr(model, "decode", decode)
        return model

    monkeypatch.setattr(step, "load_trained", load_plain)
    pictures = evaluate(spec).pictures
    sheet = np.asarray(Image.open(io.BytesIO(store().read(pictures["latent_manifold"]))))[..., 0]
    assert sheet.shape[1] == 2 * MARGIN + 16 * (TILE_PIXELS + LINE_PIXELS) + LINE_PIXELS
    middles = LINE_PIXELS + (TILE_PIXELS + LINE_PIXELS) * np.arange(16)
    tiles = sheet[CAPTION_PIXELS:, MARGIN:]
    across = tiles[middles[0] + TILE_PIXELS // 2, middles + TILE_PIXELS // 4].astype(int)
    down = tiles[middles + TILE_PIXELS // 2, middles[0] + 3 * TILE_PIXELS // 4].astype(int)
    assert (np.diff(across) > 0).all()
    assert (np.diff(down) < 0).all()
    assert across[0] + across[-1] == pytest.approx(255, abs=20), "even about the prior's middle"


def test_the_clusters_of_an_infogan_are_held_against_the_classes(s3: Settings, monkeypatch):
    """A model that sorts digits without a mistake, under names of its own, beside k-means of their pixels."""
    spec = unjudged("infogan", "digits", seed=312)
    _, dataset = open_dataset("digits", str(spec.dataset_digest))
    images, labels = (torch.from_numpy(dataset.table("test").read(c, np.arange(180))) for c in ("image@8", "label"))
    classes = {image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)}

    def load_knowing(spec: RunSpec) -> torch.nn.Module:
        model = step.untrained(spec)
        known = lambda images: [classes[image.numpy().tobytes()] for image in as_stored(images)]  # noqa: E731
        monkeypatch.setattr(model, "cluster", lambda images: torch.tensor(known(images)).add(3) % 10)
        return model

    monkeypatch.setattr(step, "load_trained", load_knowing)
    report = evaluate(spec)
    assert report.metric("cluster_accuracy").value == report.metric("cluster_accuracy").gap_closed == 1
    assert 0.1 <= some(report.metric("cluster_accuracy").untrained) < 0.5
    assert 0.6 < report.metric("cluster_accuracy_of_pixels").value < 0.95
    assert "code_traversals" in report.pictures


def test_codes_of_sprites_are_judged_by_the_factors(s3: Settings, monkeypatch):
    """Codes that are the factors themselves, beside those of weights as they are drawn."""
    monkeypatch.setattr(sprites, "IMAGES", 1200)
    spec = unjudged("autoencoder", "sprites", "resolution=16", seed=313)
    manifest, dataset = open_dataset("sprites", str(spec.dataset_digest))
    assert manifest.factors == ["colour", "orientation", "scale", "x", "y"]
    factors = {}
    for table in dataset.tables.values():
        rows = np.arange(table.rows)
        names = [factor_column(name) for name in manifest.factors] + ["label"]
        values = np.stack([table.read(name, rows) for name in names], axis=1)
        factors |= {
            image.tobytes(): torch.from_numpy(value).float()
            for image, value in zip(table.read("image@16", rows), values, strict=True)
        }

    def load_knowing(spec: RunSpec) -> torch.nn.Module:
        model = step.untrained(spec)
        codes = lambda images: torch.stack([factors[image.numpy().tobytes()] for image in as_stored(images)])  # noqa: E731
        monkeypatch.setattr(model, "encode", codes)
        monkeypatch.setattr(model, "decode", lambda codes: torch.zeros(len(codes), 1, 16, 16))
        return model

    monkeypatch.setattr(step, "load_trained", load_knowing)
    metrics = {metric.name: metric for metric in evaluate(spec).metrics}
    names = ("mig", "sap", "factor_vae_score", "dci_disentanglement", "dci_completeness", "dci_informativeness")
    for name in names:
        assert metrics[name].better == "higher"
        assert metrics[name].value > some(metrics[name].untrained)
        assert metrics[name].gap_closed == pytest.approx(1, abs=0.05), name
    assert metrics["factor_vae_score"].value > 0.9
    assert metrics["dci_disentanglement"].value > 0.8


def test_tasks_of_the_cluster_find_what_one_process_finds(stack: Settings):
    spec = unjudged("dcgan", "digits", seed=318)
    here = evaluate(spec)
    store().delete([report_key("evaluate", spec), *(entry.key for entry in store().list("evaluations/"))])

    store().put_record(f"{folder('evaluate', spec)}/spec.json", spec)
    address = store().uri(f"{folder('evaluate', spec)}/spec.json")
    spread = "from genmodels.steps import evaluate as step; step.FEW_PIXELS = 0"
    judge = f"from genmodels.cli.steps import read_spec; step.evaluate(read_spec('{address}'), ray=True)"
    job = Job("evaluate", spec, 1, RayJobs())
    job.cluster.submit(job.id, f'python -c "{spread}; {judge}"', {})
    list(job.follow())

    there = load_report("evaluate", spec, EvaluationReport)
    assert there
    assert (there.primary, there.protocol, there.not_offered) == (here.primary, here.protocol, here.not_offered)
    assert [metric.name for metric in there.metrics] == [metric.name for metric in here.metrics]
    for one, other in zip(there.metrics, here.metrics, strict=True):
        numbers = [[n for n in (m.value, m.low, m.high, m.untrained, m.floor) if n is not None] for m in (one, other)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-3), one.name
    assert {name: store().read(uri) for name, uri in there.pictures.items()}.keys() == here.pictures.keys()
    progress = read_progress("evaluate", spec)
    assert progress
    assert progress.done == progress.total > 0
    costs = costs_of("evaluate", spec)
    assert costs
    assert costs.device_seconds > 0


def test_what_is_not_trained_is_not_judged(s3: Settings):
    spec = unjudged("progressive_gan", "digits", seed=305)
    store().delete([f"runs/{spec.run_key}/weights.safetensors"])
    with pytest.raises(MissingObject):
        evaluate(spec)


def test_a_run_of_settings_that_are_no_more_is_refused_by_their_names(s3: Settings):
    spec = unjudged("autoencoder", "digits", seed=322)
    old = spec.model_copy(update={"config": spec.config | {"iwae_samples": 64}})
    with pytest.raises(SpecError, match="autoencoder no longer takes its settings iwae_samples; train it again"):
        evaluate(old)


def test_the_classifier_is_registered_with_the_model(tracking: Settings):
    spec = unjudged("progressive_gan", "digits", seed=306)
    evaluate(spec)
    register(spec)
    version = Registry().find("models:/classifier.digits/1")
    classifier = extractors.classifier_of(str(spec.dataset_digest))
    assert classifier
    assert version.tags["accuracy"] == f"{classifier.accuracy:.4f}"
    assert version.tags["dataset_digest"] == spec.dataset_digest


def test_features_are_kept_for_an_extractor_of_the_same_protocol_alone(s3: Settings, monkeypatch):
    """Of equal weights, one that takes the images as they are and one that looks at every other column."""
    images = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
    whole = extractors.Extractor("whole", "322", "none", lambda x: x.flatten(1).float(), torch.device("cpu"))
    half = replace(whole, resize="every other", network=lambda x: x[..., ::2].flatten(1).float())
    features = [extractors.held_out_features(extractor, images) for extractor in (whole, half)]
    assert [len(each[0]) for each in features] == [64, 32]
    monkeypatch.setattr(extractors.Extractor, "__call__", pytest.fail)
    assert torch.equal(extractors.held_out_features(whole, images), features[0])


def test_inception_judges_colour_images_once_its_weights_are_there(s3: Settings, monkeypatch):
    """Weights of the right form in the place of the published ones, which are not to be had here."""
    spec = unjudged("cyclegan", "photos", "resolution=32", "residual_blocks=1", "generator_channels=8", seed=307)
    weights = random_weights()
    published = INCEPTION.model_copy(update={"sha256": hashlib.sha256(weights).hexdigest()})
    monkeypatch.setattr(extractors, "INCEPTION", published)
    manifest, _ = open_dataset("photos", str(spec.dataset_digest))
    assert "python -m genmodels.evaluation.extractors" in (extractors.why_no_inception(manifest) or "")
    store().put(f"raw/{published.sha256}", b"something else")
    with pytest.raises(DataError, match="SHA-256"):
        extractors.inception_extractor(torch.device("cpu"))
    store().put(f"raw/{published.sha256}", weights)
    assert extractors.why_no_inception(manifest) is None
    extractor = extractors.inception_extractor(torch.device("cpu"))
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    features = extractors.held_out_features(extractor, images)
    assert features.shape == (2, 2048)
    monkeypatch.setattr(extractors.Extractor, "__call__", pytest.fail)
    assert torch.equal(extractors.held_out_features(extractor, images), features)  # kept
