"""A comparison as people meet it: a page that stands alone, markdown, a run in MLflow, the command."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
from judged_version import evaluated, judged_version, metric, spec_of
from playwright.sync_api import Browser, Locator, Page, expect

from genmodels.settings import Settings
from genmodels.spec import Metric
from genmodels.terminal import print_comparison
from genmodels.tracking import leaderboard
from genmodels.tracking.chart import LABEL_HEIGHT, RIGHT, WIDTH, chart
from genmodels.tracking.comparison import Column, Comparison, Contender, Leaderboard, compare
from genmodels.tracking.registry import ModelVersion
from genmodels.tracking.rest import TrackingServer

HOSTILE = "<img src=x onerror=alert(1)>|[x](javascript:alert(1))`"
SCALE = {"floor": 80.0, "untrained": 480.0}


@pytest.fixture(scope="module")
def three(tracking: Settings) -> list[ModelVersion]:
    """Three models of the data set `page`, one of which could not be judged on what it makes."""
    gan = judged_version(
        "gan", "page", metric("sliced_wasserstein", 180.0, 8.0, **SCALE), seconds=600, not_offered={"density": HOSTILE}
    )
    vae = judged_version(
        "vae",
        "page",
        metric("bits_per_dim", 2.0, note="lower bound"),
        metric("sliced_wasserstein", 280.0, 8.0, **SCALE),
        metric("reconstruction_psnr", 20.0, better="higher"),
        seconds=30,
    )
    autoencoder = judged_version(
        "autoencoder",
        "page",
        metric("reconstruction_psnr", 30.0, better="higher"),
        not_offered={"generation": "Autoencoder makes no new images."},
    )
    return [gan, vae, autoencoder]


@pytest.fixture(scope="module")
def written(three: list[ModelVersion], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of their page, with a hostile name and a hostile preset on it."""
    judged_version(
        "infogan",
        "page",
        metric(f"fid {HOSTILE}", 1.0),
        registered_as=f"{HOSTILE.replace('/', '')}.page".replace(":", ""),
        preset=HOSTILE,
        protocol={HOSTILE: HOSTILE},
    )
    path = tmp_path_factory.mktemp("page") / "out.html"
    leaderboard.save(leaderboard.page(compare("page")), path)
    return path.as_uri()


class Visit:
    """A page of the browser that keeps what went wrong on it."""

    def __init__(self, browser: Browser, address: str, **options: object):
        self.page: Page = browser.new_page(**options)  # type: ignore[arg-type]
        self.trouble: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.trouble.append(message.text))
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.trouble.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)

    def column(self, table: Locator, index: int) -> list[str]:
        return [row.locator("th, td").nth(index).inner_text().split()[0] for row in table.locator("tbody tr").all()]


@pytest.fixture
def visit(browser: Browser, written: str) -> Iterator[Visit]:
    """The page on a large screen."""
    visit = Visit(browser, written, viewport={"width": 1400, "height": 1000})
    yield visit
    visit.page.close()


def test_the_page_shows_names_numbers_and_pictures_and_asks_nothing_of_the_network(visit: Visit):
    page = visit.page
    expect(page.get_by_role("heading", name="page", exact=True)).to_be_visible()
    table = page.get_by_role("region", name="Leaderboard")
    assert visit.column(table, 0)[:3] == ["gan", "vae", "autoencoder"]
    gan = table.get_by_role("row", name="gan version 1")
    expect(gan).to_contain_text("180")
    expect(gan).to_contain_text("172 to 188")
    expect(gan).to_contain_text("10 min")
    expect(gan).to_contain_text("2 M")
    expect(gan).to_contain_text("implicit")
    assert visit.column(table, 1)[:3] == ["180", "280", "–"]
    for axis in ("Generation", "Representation", "Density"):
        expect(page.get_by_role("heading", name=axis, exact=True)).to_be_visible()
    expect(page.get_by_role("img", name="sliced_wasserstein (lower is better) over training time")).to_be_visible()
    for name in ("Samples of gan v1", "Samples of vae v1", "Reconstructions of autoencoder v1"):
        picture = page.get_by_role("img", name=name)
        expect(picture).to_be_visible()
        assert picture.evaluate("image => image.naturalWidth") == 256
    expect(page.get_by_text("Makes no new images: held-out images, each row above its reconstruction")).to_be_visible()
    page.get_by_text("Not judged on generation: autoencoder v1").click()
    expect(page.get_by_text("Autoencoder makes no new images.", exact=True)).to_be_visible()
    assert [url for url in visit.requests if not url.startswith(("file:", "data:"))] == []
    assert visit.trouble == []


def test_the_line_under_a_value_runs_from_the_untrained_model_to_real_data(visit: Visit):
    """180 is 75 % of the way from 480 to 80, and its interval from 73 % to 77 %."""
    row = visit.page.get_by_role("region", name="Leaderboard").get_by_role("row", name="gan version 1")
    assert row.locator(".track .interval").get_attribute("d") == "M73.0 4H77.0"
    assert row.locator(".track .value").get_attribute("d") == "M75.0 0V8"
    assert row.locator(".ends").inner_text().split() == ["480", "80"]


def test_a_header_sorts_best_first_and_then_the_other_way(visit: Visit):
    table = visit.page.get_by_role("region", name="Leaderboard")
    table.get_by_role("button", name="reconstruction psnr").click()
    assert visit.column(table, 0)[:2] == ["autoencoder", "vae"]
    table.get_by_role("button", name="reconstruction psnr").click()
    assert visit.column(table, 0)[:2] == ["vae", "autoencoder"]
    table.get_by_role("button", name="training").click()
    assert visit.column(table, 0)[0] == "vae"
    expect(table.get_by_role("columnheader", name="training")).to_have_attribute("aria-sort", "ascending")


def test_hostile_names_are_text_and_nothing_else(visit: Visit):
    page = visit.page
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("a[href^=javascript]").count() == 0
    expect(page.get_by_text(f", {HOSTILE}, seed 0").first).to_be_visible()
    page.get_by_text("Not judged on density").first.click()
    expect(page.get_by_text(HOSTILE, exact=True).first).to_be_visible()
    assert visit.trouble == []


def test_markdown_of_hostile_names_keeps_its_columns(written: str):
    text = leaderboard.markdown(compare("page"))
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    for lines in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert not re.search(r"(?<!\\)<|(?<!\\)\]\(javascript", text)


def contender(model: str, *metrics: Metric) -> Contender:
    """Of which no registry knows."""
    return Contender(
        name=f"{model}.many",
        version=1,
        aliases=[],
        model=model,
        preset="demo",
        seed=0,
        density="implicit",
        metrics={metric.name: metric for metric in metrics},
        not_judged={},
        parameters={},
        workers=1,
        shows="samples",
        picture=None,
        page="",
    )


def test_every_likelihood_says_whether_it_is_exact_or_a_bound(capsys: pytest.CaptureFixture[str]):
    """In the table at a glance, which the command prints, in that of its axis, and on the page; a remark of nothing
    leaves no brackets."""
    notes = {"pixelcnn": "exact", "vae": "lower bound of 64 importance samples", "gan": ""}
    models = [contender(name, metric("bits_per_dim", 2.0, note=note)) for name, note in notes.items()]
    column = Column(name="bits_per_dim", axis="density", better="lower", floor=None, baselines={}, places={})
    board = Leaderboard(protocol={}, columns=[column], contenders=models)
    comparison = Comparison(dataset="many", leaderboards=[board], left_out={})
    print_comparison(comparison)
    glance = capsys.readouterr().out
    of_axis = leaderboard.markdown(comparison).partition("### Density")[2]
    page = leaderboard.page(comparison)
    for note in filter(None, notes.values()):
        assert f"2 [1.9, 2.1] ({note})" in glance
        assert f"| 2 \\({note}\\) | 1.9 to 2.1 |" in of_axis
        assert f'<small class="note">{note}</small>' in page
    assert glance.count("(") == of_axis.count("\\(") == 2
    assert page.count('class="note"') == 4  # two tables


def test_what_is_no_number_is_last_in_the_table_of_its_axis():
    scores = {"gan": float("nan"), "dcgan": 0.3, "vae": 0.9, "flow": float("inf")}
    models = [contender(name, metric("recall", score, better="higher")) for name, score in scores.items()]
    column = Column(name="recall", axis="generation", better="higher", floor=None, baselines={}, places={})
    board = Leaderboard(protocol={}, columns=[column], contenders=models)
    table = leaderboard.markdown(Comparison(dataset="many", leaderboards=[board], left_out={}), axes=["generation"])
    rows = table.partition("### Generation")[2].splitlines()
    assert [row.split(" | ")[2] for row in rows if " v1 " in row] == ["vae v1", "dcgan v1", "gan v1", "flow v1"]


def test_samples_stand_side_by_side_four_in_a_row():
    models = [contender(name, metric("fid", 1.0)) for name in ("gan", "dcgan", "vae", "flow", "sngan", "biggan")]
    column = Column(name="fid", axis="generation", better="lower", floor=None, baselines={}, places={})
    board = Leaderboard(protocol={}, columns=[column], contenders=models)
    pictures = {each.label: f"data:{each.model}" for each in models if each.model != "vae"}
    text = leaderboard.markdown(Comparison(dataset="many", leaderboards=[board], left_out={}), pictures)
    first, second = [block.splitlines() for block in text.split("\n\n") if "![" in block]
    assert first[0] == "| gan v1 | dcgan v1 | flow v1 | sngan v1 |"
    assert first[2].startswith("| ![gan v1](data:gan) | ![dcgan v1](data:dcgan) | ![flow v1](data:flow) |")
    assert second == ["| biggan v1 |", "| --- |", "| ![biggan v1](data:biggan) |"]


def test_no_label_of_the_chart_lies_on_another_or_on_a_mark():
    """Thirty models at random, as close as they come."""
    random = Random(0)
    models = [
        contender(f"vae_{index}", metric("fid", random.uniform(0, 100))).model_copy(
            update={"seconds": random.uniform(30, 900)}
        )
        for index in range(30)
    ]
    column = Column(
        name="fid", axis="generation", better="lower", floor=None, baselines={}, places={m.label: 1 for m in models}
    )
    drawing = chart(Leaderboard(protocol={}, columns=[column], contenders=models))
    assert drawing is not None
    assert [leaderboard.duration(seconds) for _, seconds in drawing.x_ticks] == [
        "30 s",
        "60 s",
        *("2 min", "5 min"),
        *("10 min", "20 min"),
    ]
    assert len(drawing.points) == 30
    for point in drawing.points:
        for other in drawing.points:
            if other is not point and abs(other.x - point.x) < WIDTH - RIGHT:
                assert abs(other.label_y - point.label_y) >= LABEL_HEIGHT
            if 0 < other.x - point.x < WIDTH - RIGHT:
                assert abs(other.y - point.label_y) >= LABEL_HEIGHT


def test_a_note_that_is_too_long_for_mlflow_ends_with_a_whole_row():
    many = [contender(f"vae_{index}", metric("fid", float(index))) for index in range(200)]
    places = {contender.label: 1 for contender in many}
    column = Column(name="fid", axis="generation", better="lower", floor=None, baselines={}, places=places)
    for count in (3, 200):
        board = Leaderboard(protocol={}, columns=[column], contenders=many[:count])
        lines = leaderboard.note(Comparison(dataset="many", leaderboards=[board], left_out={})).strip().splitlines()
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {8}
        assert len("\n".join(lines)) <= 8000
        assert (len(lines) == 2 + count) == (count == 3)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_tables_and_not_the_page(browser: Browser, written: str, scheme: str):
    visit = Visit(browser, written, viewport={"width": 390, "height": 844}, color_scheme=scheme)
    assert visit.page.evaluate("document.documentElement.scrollWidth") == 390
    red, green, blue = map(
        int, re.findall(r"\d+", visit.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    )
    assert (red + green + blue > 600) == (scheme == "light")
    visit.page.close()


def test_the_same_versions_are_one_run_in_mlflow_and_new_numbers_are_new_points(three: list[ModelVersion]):
    server = TrackingServer()

    def run() -> dict[str, object]:
        return server.get("runs/get", run_id=run_id)["run"]

    def history(key: str) -> list[float]:
        points = server.get("metrics/get-history", run_id=run_id, metric_key=key).get("metrics", [])
        return [point["value"] for point in sorted(points, key=lambda point: point["timestamp"])]

    judged_version("gan", "kept", metric("sliced_wasserstein", 5.0), metric("ms_ssim", float("nan")), seconds=600)
    judged_version("vae", "kept", metric("sliced_wasserstein", 6.0))
    with ThreadPoolExecutor(2) as pool:
        addresses = set(pool.map(leaderboard.log, [compare("kept"), compare("kept")]))
    [run_id] = {re.search(r"/runs/(\w+)\?", address)[1] for address in addresses}  # type: ignore[index]
    assert run()["info"]["run_name"].startswith("compare-kept-")  # type: ignore[index]
    metrics = {entry["key"]: entry["value"] for entry in run()["data"]["metrics"]}  # type: ignore[index]
    assert metrics["generation/sliced_wasserstein/gan.1"] == 5.0
    assert metrics["place/sliced_wasserstein/vae.1"] == 2
    assert metrics["cost/training_seconds/gan.1"] == 600
    assert metrics["cost/parameters/gan.1"] == 2_001_500
    assert not [key for key in metrics if "ms_ssim" in key]
    files = {file["path"] for file in server.get("artifacts/list", run_id=run_id)["files"]}
    assert files == {"leaderboard.html", "comparison.json", "images"}
    pictures = [file["path"] for file in server.get("artifacts/list", run_id=run_id, path="images")["files"]]
    assert {path.partition("+")[0] for path in pictures} == {"images/samples~gan.1", "images/samples~vae.1"}

    evaluated(spec_of("vae", "kept"), metric("sliced_wasserstein", 4.0))
    assert leaderboard.log(compare("kept")) in addresses
    assert history("generation/sliced_wasserstein/vae.1") == [6.0, 4.0]
    assert set(history("generation/sliced_wasserstein/gan.1")) == {5.0}
    assert history("place/sliced_wasserstein/vae.1")[-1] == 1

    judged_version("dcgan", "kept", metric("sliced_wasserstein", 7.0))
    assert leaderboard.log(compare("kept")) not in addresses


def test_mlflow_shows_the_page_and_the_tables(three: list[ModelVersion], page: Page):
    page.goto(leaderboard.log(compare("page")))
    expect(page.get_by_role("cell", name="180 [172, 188] 1").first).to_be_visible()
    page.get_by_text("Artifacts", exact=True).last.click()
    page.get_by_text("leaderboard.html").first.click()
    frame = page.frame_locator("iframe").first
    expect(frame.get_by_role("heading", name="page", exact=True)).to_be_visible()
    expect(frame.get_by_role("img", name="Samples of gan v1")).to_be_visible()


def test_the_command_prints_the_leaderboard_and_writes_the_page(three: list[ModelVersion], tmp_path: Path):
    command = [sys.executable, "-m", "genmodels", "compare", "-d", "page", "--html", str(tmp_path / "out.html")]
    for arguments in ([], ["--json"]):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True, env=os.environ)
        if arguments:
            [board] = json.loads(done.stdout.splitlines()[-1])["leaderboards"]
            assert [each["model"] for each in board["contenders"]][:3] == ["gan", "vae", "autoencoder"]
        else:
            assert re.search(r"^1 +gan v1 +implicit +180 \[172, 188\] 1 ", done.stdout, re.MULTILINE), done.stdout
            assert "In MLflow: http" in done.stdout
    assert "<h1>page</h1>" in (tmp_path / "out.html").read_text()
