"""The command, as a person or a program meets it: in a process of its own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from genmodels.settings import Settings
from genmodels.spec import PrepareReport, RunSpec

COMMANDS = {
    *("up", "down", "status", "retrain", "serve", "alerts", "promote", "costs", "spec", "prepare", "train"),
    *("evaluate", "register", "sample", "interpolate", "traverse", "arithmetic", "compare", "translate"),
    *("models", "datasets", "bench"),
}
NO_SERVERS = {
    "GENMODELS_S3_ACCESS_KEY": "key",
    "GENMODELS_S3_SECRET_KEY": "do-not-show-me",
    **{f"GENMODELS_{name}": "http://127.0.0.1:9" for name in ("S3_ENDPOINT", "MLFLOW_URL", "RAY_ADDRESS")},
    "GENMODELS_PREFECT_API_URL": "http://127.0.0.1:9/api",
}


def genmodels(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "genmodels", *arguments],
        input=stdin,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def spec_of(*arguments: str) -> str:
    done = genmodels("spec", *(arguments or ("progressive_gan", "-d", "digits")))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_names_every_command() -> None:
    done = genmodels("--help", COLUMNS="200")
    assert done.returncode == 0
    listed = {
        line.split()[1] for line in done.stdout.splitlines() if line.startswith("│ ") and line.split()[1].isalpha()
    }
    assert listed == COMMANDS


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_each_command_explains_itself(command: str) -> None:
    done = genmodels(command, "--help")
    assert done.returncode == 0
    assert "--help" in done.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from genmodels.cli import app; "
        "print(sorted({'boto3', 'mlflow', 'numpy', 'prefect', 'ray', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["retrain", "progresive_gan", "-d", "digits"],
            "Unknown model 'progresive_gan'; did you mean progressive_gan?",
        ),
        (["retrain", "progressive_gan", "-d", "digitz"], "'digitz'; did you mean digits or stacked_digits?"),
        (["retrain", "progressive_gan", "-d", "digits", "--preset", "dmo"], "did you mean demo?"),
        (["retrain", "progressive_gan", "-d", "digits", "--set", "latnt=3"], "'latnt'; did you mean latent?"),
        (["retrain", "progressive_gan", "-d", "digits", "--set", "resolution=9"], "'resolution' cannot be 9"),
        (["retrain", "cyclegan", "-d", "digits"], "learns from two unpaired domains"),
        (["train", "nowhere.json"], "The spec nowhere.json cannot be read: No such file or directory"),
        (["train", "-"], "- is not a spec"),
        (["sample", "progressive_gan.digits"], "is not a model's address"),
        (["sample", "models:/gan.digits/1", "--truncation", "0"], "the largest |z| and above 0, not 0.0"),
        (["sample", "models:/gan.digits/1", "--truncation", "nan"], "the largest |z| and above 0, not nan"),
        (["sample", "models:/gan.digits/1", "--temperature", "-1"], "finite and not below 0, not -1.0"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: list[str], says: str) -> None:
    done = genmodels(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [["retrain"], ["retrain", "progressive_gan"], ["retrian"], ["bench", "--steps", "0"], ["sample", "-n", "x"]],
)
def test_bad_usage_is_refused_without_a_traceback(arguments: list[str]) -> None:
    done = genmodels(*arguments)
    assert done.returncode == 2
    assert "Error" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["prepare", "-"],
        ["retrain", "progressive_gan", "-d", "digits"],
        ["sample", "models:/progressive_gan.digits/1"],
    ],
)
def test_servers_that_are_away_are_named_with_what_to_do(arguments: list[str], tmp_path: Path) -> None:
    stdin = spec_of() if "-" in arguments else ""
    done = genmodels(*arguments, stdin=stdin, GENMODELS_HOME=str(tmp_path), **NO_SERVERS)
    assert done.returncode == 75
    assert "http://127.0.0.1:9" in done.stderr
    assert "`genmodels up`" in done.stderr
    assert "Traceback" not in done.stderr
    assert "do-not-show-me" not in done.stderr + done.stdout


def test_status_without_a_stack(tmp_path: Path) -> None:
    done = genmodels("status", "--json", GENMODELS_HOME=str(tmp_path))
    assert done.returncode == 75
    assert json.loads(done.stdout) == {"home": str(tmp_path), "services": {}}


def test_settings_that_cannot_be_read_are_named_without_their_contents(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text('{"s3_secret_key": "do-not-show-me"')
    done = genmodels("status", GENMODELS_HOME=str(tmp_path))
    assert done.returncode == 2
    assert f"{tmp_path}/stack.json is not JSON" in done.stderr
    assert "do-not-show-me" not in done.stderr


def test_a_login_in_an_address_is_refused_unshown(tmp_path: Path) -> None:
    done = genmodels(
        "status", GENMODELS_HOME=str(tmp_path), GENMODELS_MIRROR="https://me:do-not-show-me@127.0.0.1/data"
    )
    assert done.returncode == 2
    assert "put the login of an address into ~/.netrc" in done.stderr
    assert "do-not-show-me" not in done.stderr


@pytest.mark.parametrize("value", ["GPU", '{"TPU": 1}', '{"GPU": 0}', "[1]"])
def test_a_variable_of_another_form_is_named(value: str, tmp_path: Path) -> None:
    done = genmodels("status", GENMODELS_HOME=str(tmp_path), GENMODELS_WORKER_RESOURCES=value)
    assert done.returncode == 2
    assert "cannot be what GENMODELS_WORKER_RESOURCES says" in done.stderr
    assert "Traceback" not in done.stderr


def test_models_and_datasets_are_listed() -> None:
    models = json.loads(genmodels("models", "--json").stdout.splitlines()[-1])
    assert models["progressive_gan"]["density"] == models["cyclegan"]["density"] == "implicit"
    assert models["progressive_gan"]["capabilities"] == ["sample"]
    assert models["cyclegan"]["capabilities"] == ["translate"]
    assert models["cyclegan"]["kinds"] == ["unpaired"]
    datasets = json.loads(genmodels("datasets", "--json").stdout.splitlines()[-1])
    assert sum(datasets["digits"]["counts"].values()) == 1797
    assert datasets["mnist"]["counts"] == {"train": 60_000, "test": 10_000}
    shown = genmodels("datasets", COLUMNS="100").stdout
    assert "mnist: https://ossci-datasets.s3.amazonaws.com/mnist/train-images-idx3-ubyte.gz, https://" in shown
    assert "\ncityscapes has no address to download from: get gtFine and leftImg8bit from https://www." in shown
    assert "\ndigits: part of scikit-learn\n" in shown


@pytest.mark.parametrize("model", ["progressive_gan", "biggan"])
def test_bench_reports_what_it_measured(model: str) -> None:
    """Of a model that is told the class too."""
    arguments = ["--resolution", "8", "--batch-size", "4", "--steps", "1", "--preset", "demo", "--json"]
    done = genmodels("bench", model, *arguments)
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["resolution"], report["batch_images"]) == (8, 4)
    assert len(report["blocks"]) >= 5
    assert report["images_per_second"] == pytest.approx(sorted(report["blocks"])[len(report["blocks"]) // 2])
    assert set(report["parameters"]) == {"generator", "discriminator"}


def test_a_spec_is_taken_from_a_file_from_an_address_and_from_standard_input(s3: Settings, tmp_path: Path) -> None:
    from genmodels.storage.objects import store

    text = spec_of("progressive_gan", "-d", "digits", "--set", "resolution=4")  # at which no other test prepares it
    unprepared = genmodels("train", "-", stdin=text)
    assert unprepared.returncode == 2
    assert "run `genmodels prepare` with this spec first" in unprepared.stderr

    first = genmodels("prepare", "-", "--json", stdin=text)
    assert first.returncode == 0, first.stderr
    report = PrepareReport.model_validate_json(first.stdout.splitlines()[-1])
    assert sum(report.rows.values()) == 1797

    (tmp_path / "spec.json").write_text(text)
    store().put("specs/one.json", text.encode())
    for address in (str(tmp_path / "spec.json"), store().uri("specs/one.json")):
        again = genmodels("prepare", address, "--json")
        assert PrepareReport.model_validate_json(again.stdout.splitlines()[-1]) == report
    assert RunSpec.model_validate_json(text).dataset_digest is None


def test_an_interrupt_ends_the_command_quietly() -> None:
    terminal, its_end = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "genmodels", "bench", "progressive_gan", "--resolution", "64", "--batch-size", "16"],
        stdout=subprocess.PIPE,
        stderr=its_end,
        env=os.environ | {"TERM": "xterm"},
    )
    os.close(its_end)
    shown = b""
    while b"timing progressive_gan" not in shown:  # an interrupt that meets an import may get lost there
        shown += os.read(terminal, 1024)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate()
    with contextlib.suppress(OSError):  # EIO is a terminal's end of file
        while more := os.read(terminal, 1024):
            shown += more
    os.close(terminal)
    assert process.returncode == 130
    assert b"Traceback" not in out + shown
