"""Kinds of fault that public bug reports of this field describe, each with the tests that hold it.

The tests stand with what they test, where `make test` runs them; here each kind is run as a whole.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

KINDS = {
    "the recorded advantage is the trained one": ["unit/test_step_record.py"],
    "what a model does after its head is computed or refused": ["unit/test_head.py"],
    "a user's file gets its own siblings": ["unit/test_user_files.py"],
    "a run that is named is resumed, wherever it is": [
        "e2e/test_moved_and_unread.py::test_a_run_that_was_moved_with_its_inputs_goes_on_where_it_is",
        "e2e/test_moved_and_unread.py::test_a_run_that_was_renamed_alone_finds_its_inputs_where_they_are",
        "e2e/test_moved_and_unread.py::test_the_inputs_of_a_recipe_are_the_same_from_everywhere",
        "e2e/test_moved_and_unread.py::test_a_run_without_a_checkpoint_starts_in_the_folder_that_is_named",
    ],
    "changed inputs are refused": [
        "e2e/test_moved_and_unread.py::test_what_a_recipe_names_has_changed",
        "unit/test_inputs.py",
    ],
    "a checkpoint is rehearsed before the first step": [
        "e2e/test_moved_and_unread.py::test_sampling_without_do_sample_trains_and_is_saved",
        "e2e/test_moved_and_unread.py::test_what_cannot_be_saved_is_refused_before_anything_is_sampled",
    ],
    "training does not depend on being read": [
        "e2e/test_moved_and_unread.py::test_training_does_not_depend_on_being_read",
        "e2e/test_moved_and_unread.py::test_commands_for_a_reader_end_quietly",
    ],
    "faulted samples do not flatter": [
        "e2e/test_verify_command.py::test_a_reward_that_faults_on_ordinary_wrong_answers",
        "unit/test_evaluate.py::test_faulted_samples_count_as_wrong_up_to_a_share",
        "unit/test_evaluate.py::test_the_answers_of_faulted_samples_vote_as_wrong_ones",
    ],
    "numbers keep their value": ["unit/test_tables.py"],
    "reading a returned value kills nothing": ["unit/test_returned_values.py"],
    "output is bounded and waiting is shown": [
        "e2e/test_verify_command.py::test_a_flood_is_bounded",
        "e2e/test_verify_command.py::test_a_slow_reward_shows_progress",
    ],
    "precision follows the machine": [
        "unit/test_precision.py",
        "unit/test_doctor.py::test_an_import_that_does_not_end_is_not_awaited",
    ],
    "a dry run refuses what the run would": [
        "e2e/test_bad_models.py::test_a_long_row_is_found_however_far_down",
        "e2e/test_bad_models.py::test_rows_that_do_not_fit_are_left_out_and_counted",
        "e2e/test_bad_models.py::test_a_gguf_file_is_looked_at_by_a_dry_run",
        "e2e/test_bad_models.py::test_a_stream_that_cannot_print_a_response",
        "e2e/test_bad_inputs.py::test_advice_stays_within_the_models_positions",
        "e2e/test_bad_inputs.py::test_a_folder_where_a_table_is_expected",
    ],
}


def test_every_named_test_is_there():
    for named in (name for names in KINDS.values() for name in names):
        file, _, function = named.partition("::")
        assert f"def {function}" in (ROOT / "tests" / file).read_text(encoding="utf-8"), named


@pytest.mark.long  # the same tests, once more
@pytest.mark.parametrize("kind", KINDS)
def test_no_report_of_this_kind_is_true_here(kind):
    named = [str(ROOT / "tests" / name) for name in KINDS[kind]]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *named],
        cwd=ROOT, env=os.environ, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
