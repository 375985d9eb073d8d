"""Where each of the 34 faults and bad inputs that this project answers for is made to happen.

A fault is named by what happens, and by the tests that show what holds afterwards; `Not` says why there is none.
"""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Not:
    """A fault, or a part of one, that has no test."""

    because: str


FAULTS: dict[int, tuple[str, list[str | Not]]] = {
    1: (
        "a download is reset at 60 %, again, and then goes well",
        ["data/test_download.py::test_a_line_that_breaks_off_again_and_again_is_continued_where_it_broke"],
    ),
    2: (
        "the bytes behind an address change",
        [
            "data/test_download.py::test_a_wrong_checksum_closes_the_door_and_names_both",
            "data/test_download.py::test_without_a_published_checksum_the_first_download_pins_it",
        ],
    ),
    3: ("an archive climbs, links, explodes or never ends", ["data/test_archives.py::test_refused"]),
    4: (
        "images are corrupt, empty, of a wrong mode or huge",
        [
            "data/test_images.py::test_what_cannot_be_used_is_named",
            "data/test_preprocess.py::test_a_few_bad_images_are_set_aside_and_counted",
            "data/test_preprocess.py::test_too_many_bad_images_end_it_with_their_reasons_and_names",
        ],
    ),
    5: (
        "a prepared data set's object is deleted or altered",
        [
            "steps/test_prepare.py::test_what_was_prepared_and_is_gone_is_prepared_again_and_the_log_says_why",
            "data/test_manifest.py::test_a_damaged_shard_is_refused_and_leaves_nothing",
        ],
    ),
    6: (
        "two prepare the same data set at once",
        ["steps/test_prepare.py::test_two_who_prepare_the_same_at_once_do_each_other_no_harm"],
    ),
    7: (
        "a run is cancelled in Prefect",
        [
            "flows/test_retrain.py::test_a_training_survives_its_flow_and_goes_on_after_a_cancel",
            "faults/test_outages.py::test_killed_then_cancelled_in_each_step_and_run_again",
        ],
    ),
    8: (
        "the flow's process is killed",
        [
            "flows/test_retrain.py::test_a_training_survives_its_flow_and_goes_on_after_a_cancel",
            "faults/test_soak.py::test_random_kills_change_nothing",
            "faults/test_outages.py::test_killed_then_cancelled_in_each_step_and_run_again",
        ],
    ),
    9: ("Prefect is away for two minutes", ["faults/test_outages.py::test_a_flow_survives_without_help"]),
    10: ("Prefect's database is locked for 20 s", ["faults/test_outages.py::test_a_flow_survives_without_help"]),
    11: (
        "every call for an artifact fails or takes long",
        ["faults/test_outages.py::test_a_flow_survives_without_help"],
    ),
    12: (
        "Prefect is restarted",
        [
            "faults/test_outages.py::test_a_flow_survives_without_help",
            Not("a training holds no lease of Prefect's: what is trained once is decided by the id of its Ray job"),
        ],
    ),
    13: (
        "two runs of the same overlap",
        [
            "steps/test_jobs.py::test_two_submitters_at_once_have_one_job",
            "faults/test_soak.py::test_random_kills_change_nothing",
            "faults/test_outages.py::test_the_same_run_started_twice_at_once",
            "flows/test_deployments.py::test_serving_and_prefect_deploy_publish_the_same",
        ],
    ),
    14: (
        "an approval comes late, twice, malformed, or after another champion",
        [
            "flows/test_approval.py::test_what_is_no_answer_is_refused_and_one_valid_approval_makes_a_champion",
            "flows/test_approval.py::test_an_answer_after_a_newer_champion_changes_nothing",
            "flows/test_approval.py::test_nothing_changes_without_an_answer",
        ],
    ),
    15: (
        "a worker is killed",
        [
            "steps/test_train.py::test_a_killed_worker_changes_nothing",
            "faults/test_soak.py::test_random_kills_change_nothing",
        ],
    ),
    16: (
        "the first worker is killed while its checkpoint is on its way",
        [
            "faults/test_faults_of_training.py"
            "::test_a_worker_killed_while_its_checkpoint_is_on_its_way_and_one_that_hangs",
            "training/test_loop.py::test_a_damaged_checkpoint_is_passed_over",
        ],
    ),
    17: (
        "a worker hangs",
        [
            "faults/test_faults_of_training.py"
            "::test_a_worker_killed_while_its_checkpoint_is_on_its_way_and_one_that_hangs"
        ],
    ),
    18: (
        "more workers are asked for than there is room for",
        ["faults/test_faults_of_training.py::test_more_workers_than_the_cluster_has_room_for"],
    ),
    19: (
        "a step's driver is killed; the run comes again, with the same or another configuration",
        [
            "steps/test_train.py::test_a_killed_driver_changes_nothing",
            "steps/test_resolve.py::test_the_run_key_changes_with_what_changes_the_weights",
        ],
    ),
    20: (
        "a host is lost, and training goes on with fewer workers",
        ["faults/test_several_machines.py::test_a_host_is_cut_off_in_mid_run_and_the_training_ends_on_the_other"],
    ),
    21: (
        "a loss is not finite",
        [
            "training/test_loop.py::test_a_loss_that_is_not_finite_falls_back_and_meets_other_noise",
            "training/test_loop.py::test_a_loss_that_never_becomes_finite_fails_after_the_last_rollback",
        ],
    ),
    22: (
        "who watches a training fails",
        ["faults/test_faults_of_training.py::test_a_silent_mlflow_and_an_s3_that_fails_now_and_then"],
    ),
    23: (
        "memory runs out",
        [
            "steps/test_train.py::test_a_killed_worker_changes_nothing",
            Not("on the host the kernel kills a worker, which is the fault above; a GPU's is not simulated"),
        ],
    ),
    24: (
        "S3 answers one request in twenty with 503 or a reset, and the others late",
        [
            "faults/test_faults_of_training.py::test_a_silent_mlflow_and_an_s3_that_fails_now_and_then",
            "storage/test_objects.py::test_passing_faults_are_not_noticed",
            "storage/test_objects.py::test_faults_that_do_not_pass_become_an_error_that_may",
        ],
    ),
    25: (
        "a process is killed in the middle of an upload in parts",
        ["faults/test_faults_of_storage.py::test_an_upload_in_parts_whose_process_is_killed"],
    ),
    26: (
        "objects are empty, of one byte, and about as long as a part",
        ["storage/test_objects.py::test_bytes_come_back_as_they_went_on_both_sides_of_the_multipart_size"],
    ),
    27: (
        "credentials are wrong, the bucket is missing, a disk is full",
        [
            "storage/test_objects.py::test_wrong_credentials",
            "storage/test_objects.py::test_a_bucket_that_does_not_exist",
            "faults/test_faults_of_storage.py::test_a_full_disk_on_a_node",
            "storage/test_files.py::test_a_full_disk_says_so",
        ],
    ),
    28: (
        "MLflow is away in training or registration, or an answer of it is lost",
        [
            "tracking/test_queue.py::test_metrics_of_a_time_without_server_arrive_once_and_in_order",
            "tracking/test_queue.py::test_nothing_is_lost_or_doubled_when_answers_are_lost",
            "steps/test_register.py::test_two_at_once_and_a_lost_report_make_one_version",
            "faults/test_faults_of_training.py::test_a_silent_mlflow_and_an_s3_that_fails_now_and_then",
            "faults/test_outages.py::test_a_flow_survives_without_help",
        ],
    ),
    29: (
        "a death between a version and its alias; two challengers at once",
        [
            "tracking/test_promotion.py::test_a_death_between_decision_and_alias_is_repaired_by_a_rerun",
            "tracking/test_promotion.py::test_of_two_at_once_the_better_one_is_champion",
        ],
    ),
    30: (
        "the gate gets no number, a NaN, other data, or the first model ever",
        [
            "tracking/test_promotion.py::test_the_first_one_is_champion",
            "tracking/test_promotion.py::test_what_is_not_comparable_or_not_better_stays_challenger",
        ],
    ),
    31: (
        "weights are poisoned",
        [
            "tracking/test_packaging.py::test_a_hostile_program_is_refused_before_anything_of_it_runs",
            "tracking/test_registry.py::test_files_that_are_not_the_registered_ones_are_refused",
        ],
    ),
    32: (
        "names are hostile",
        [
            "steps/test_hostile_specs.py::test_what_a_spec_names_is_safe_wherever_it_is_written",
            "tracking/test_runs.py::test_hostile_text_in_tags_comes_back_as_it_was",
        ],
    ),
    33: (
        "somebody looks for secrets, or asks what would be done",
        [
            "flows/test_retrain.py::test_nothing_secret_is_in_prefect",
            "test_stack.py::test_secrets_are_on_no_command_line_and_in_no_log",
            "steps/test_prune.py::test_only_what_nobody_needs_goes",
        ],
    ),
    34: (
        "somebody comes with no credentials or from elsewhere; the same run is made twice",
        [
            "test_stack.py::test_nothing_listens_off_the_loopback_interface",
            "test_stack.py::test_with_logins_every_public_port_asks_for_them_and_no_other_port_is_public",
            "steps/test_jobs.py::test_a_wrong_token_is_refused_in_one_sentence",
            "training/test_loop.py::test_an_interrupted_training_ends_bit_for_bit_like_a_quiet_one",
        ],
    ),
}


@cache
def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_bytes())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_they_are_34():
    assert list(FAULTS) == list(range(1, 35))


@pytest.mark.parametrize("number", FAULTS)
def test_there_is_such_a_test(number: int):
    what, shown = FAULTS[number]
    assert what
    assert any(isinstance(test, str) for test in shown), "a reason alone shows nothing"
    for test in (test for test in shown if isinstance(test, str)):
        file, _, name = test.partition("::")
        assert name in names_in(TESTS / file), test
