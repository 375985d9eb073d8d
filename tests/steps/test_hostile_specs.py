"""Hostile input to the two parsers that people and other programs reach: specs and overrides.

Whatever comes in, the answer is a spec whose names are safe in a path, a key, a command and a variable, or a SpecError.
"""

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from genmodels.cli.steps import read_spec
from genmodels.errors import GenmodelsError, SpecError
from genmodels.models import MODELS
from genmodels.spec import EvaluationSpec, RunSpec, TrainingSpec
from genmodels.steps.jobs import Job, RayJobs
from genmodels.steps.reports import folder
from genmodels.steps.resolve import configured, resolve

HOSTILE = st.sampled_from(
    [
        *("$(touch canary)", "`touch canary`", "; touch canary", "../../etc/passwd", "\n", "\x00", "\x1b[31m"),
        *("{{ 7*7 }}", "%(here)s", "${HOME}", "<script>", "'; DROP TABLE runs; --", "a" * 500, "🜁", "--help"),
        *("-", "/", "\\", '"'),
    ]
)
TEXT = st.one_of(HOSTILE, st.text(max_size=40), st.tuples(st.text(max_size=5), HOSTILE).map("".join))
KEYS = st.one_of(TEXT, st.sampled_from(sorted(MODELS["progressive_gan"].Config.model_fields)))
MODEL = st.one_of(st.just("progressive_gan"), TEXT)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
NAME = re.compile(r"[\w-]*")
QUICK = settings(max_examples=50, deadline=None)


@QUICK
@given(st.lists(st.one_of(TEXT, st.tuples(KEYS, st.one_of(TEXT, JSON.map(json.dumps))).map("=".join)), max_size=3))
def test_overrides_are_settings_that_there_are_or_refused(overrides: list[str]):
    before = dict(os.environ)
    try:
        config, *_ = configured("progressive_gan", "demo", overrides)
    except SpecError:
        pass  # refused, in words
    else:
        known = set(MODELS["progressive_gan"].Config.model_fields)
        keys = {override.partition("=")[0] for override in overrides}
        others = {"training": TrainingSpec, "evaluation": EvaluationSpec}
        assert keys <= known | {f"{what}.{name}" for what, kind in others.items() for name in kind.model_fields}
        assert set(config.model_dump()) <= known
    assert dict(os.environ) == before


@QUICK
@given(TEXT, TEXT, TEXT)
def test_names_are_known_ones_or_refused(model: str, dataset: str, preset: str):
    right = {"model": "progressive_gan", "dataset": "digits", "preset": "demo"}
    for wrong in ({"model": model}, {"dataset": dataset}, {"preset": preset}):
        with pytest.raises(GenmodelsError):
            resolve(**(right | wrong))


@QUICK
@given(st.fixed_dictionaries({"model": MODEL, "dataset": TEXT}, optional={"preset": TEXT, "dataset_digest": TEXT}))
def test_what_a_spec_names_is_safe_wherever_it_is_written(fields: dict[str, Any]):
    known = {"config": {"resolution": 8}, "code_version": "0", "dataset_digest": "0" * 64}
    try:
        spec = RunSpec.model_validate(known | fields)
    except ValidationError:
        return
    assert NAME.fullmatch(spec.dataset_name)
    assert re.fullmatch(r"runs/[0-9a-f]{64}", folder("train", spec))
    job = Job.__new__(Job)
    cluster = RayJobs.__new__(RayJobs)
    Job.__init__(job, "train", spec, 1, cluster)
    assert shlex.split(job.id) == [job.id], "one word of a shell, whatever the names"


@QUICK
@given(st.one_of(st.binary(max_size=60), JSON.map(lambda value: json.dumps(value).encode())))
def test_a_file_that_is_no_spec_is_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    path = tmp_path_factory.getbasetemp() / "spec.json"
    path.write_bytes(content)
    with pytest.raises(SpecError, match="is not a spec"):
        read_spec(str(path))


@QUICK
@given(TEXT)
def test_an_address_that_is_none_is_refused(address: str):
    if address not in {"-", "/"} and not os.path.exists(address):
        with pytest.raises(SpecError):
            read_spec(address)
    assert not Path("canary").exists()
