"""MLflow's own pages, in a real browser, as a person who compares two models meets them."""

import json
from urllib.parse import quote

from finished_run import finished_run
from playwright.sync_api import Page, expect

from genmodels.settings import Settings
from genmodels.steps.register import register
from genmodels.tracking.rest import TrackingServer
from genmodels.tracking.runs import run_page


def test_two_runs_are_compared_and_each_shows_its_pictures(tracking: Settings, page: Page):
    specs = [
        finished_run("progressive_gan", "digits", f"latent={latent}", seed=210, value=value)
        for latent, value in ((48, 0.25), (96, 0.75))
    ]
    runs = [register(spec).mlflow_run_id for spec in specs]
    experiment = TrackingServer().get("runs/get", run_id=runs[0])["run"]["info"]["experiment_id"]
    query = f"runs={quote(json.dumps(runs))}&experiments={quote(json.dumps([experiment]))}"
    page.goto(f"{tracking.mlflow_url}/#/compare-runs?{query}")
    expect(page.get_by_text("Comparing 2 Runs from 1 Experiment")).to_be_visible()
    for parameter, values in {"latent": "48 96", "resolution": "8 8"}.items():
        expect(page.get_by_role("row", name=f"{parameter} {values}", exact=True)).to_be_visible()
    for metric in ("evaluation/sliced_wasserstein_8", "gap_closed/sliced_wasserstein_8"):
        expect(page.get_by_text(metric, exact=True).last).to_be_visible()
    page.get_by_label("Show diff only").first.click()
    expect(page.get_by_role("row", name="latent 48 96", exact=True)).to_be_visible()
    expect(page.get_by_role("row", name="resolution 8 8", exact=True)).to_be_hidden()

    page.goto(run_page(runs[0]))
    expect(page.get_by_role("heading", name="Registered models")).to_be_visible()
    expect(page.get_by_text("Model registry").first).to_be_visible()  # in the menu of the pages for training alone
    page.get_by_text("Artifacts", exact=True).last.click()
    page.get_by_text("evaluation", exact=True).click()
    page.get_by_text("contact_sheet.png").first.click()
    expect(page.locator('img[src^="blob:"]').first).to_be_visible()
