"""What the stages of the pipeline are made of: notations, rows, rejection, plan and guard."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from r1lab.config.reading import load_recipe
from r1lab.config.recipe import SourceSettings
from r1lab.config.stages import KeepSettings, PipelineRecipe, RowsSettings
from r1lab.data import everyday, notation
from r1lab.data.corpus import documents
from r1lab.model.tokenizer import build_tokenizer
from r1lab.pipeline.guard import check_stage, held_out_questions
from r1lab.pipeline.plan import below, chosen, stages_of
from r1lab.problems.registry import load_mixture, load_problems, shipped_folder
from r1lab.prompts import TEMPLATES
from r1lab.stages.rows import encoded_rows, read_rows
from r1lab.stages.sample import alike, check_names, kept_rows
from r1lab.types import (
    Completion,
    Problem,
    RecipeError,
    Rollout,
    RunStopped,
    ScoredGroup,
    ScoringFailure,
    Verdict,
)

TEMPLATE = TEMPLATES["compact"]
NANO = shipped_folder("recipes") / "r1" / "nano.yaml"


def completion(text, finish_reason="stop"):
    read = TEMPLATE.read(text)
    return Completion(
        token_ids=tuple(range(len(text.split()))), text=text, finish_reason=finish_reason,
        weight_version=0, prefix=TEMPLATE.prefix, thinking=read.thinking, answer=read.answer,
    )  # fmt: skip


PROBLEM = Problem("p", "8 / 6 = ?", "1 r 2", "division", "division")


# --- two notations ---------------------------------------------------------------------------


def test_a_text_goes_into_words_token_for_token_and_back():
    tokenizer = build_tokenizer()
    corpus = documents(tasks={"boxes": 1, "division": 1, "derivations": 1}, drills=0, broken=0)
    for index in range(200):
        text = corpus[index].response.split("</think>")[0].strip()
        words = notation.in_words(text)
        assert len(tokenizer.encode(words)) == len(tokenizer.encode(text))
        assert notation.in_symbols(words).split() == text.split()
        assert notation.counts(words)["symbols"] == notation.counts(text)["words"] == 0


def test_the_share_of_a_notation_is_counted_over_its_marks():
    mixed = completion(" 8 / 6 is one rest two </think> <answer> 1 r 2 </answer>")
    verdict = notation.consistency(PROBLEM, mixed, notation="words")
    assert verdict.score == pytest.approx(4 / 7)
    assert notation.consistency(PROBLEM, mixed, notation="symbols").score == pytest.approx(3 / 7)
    for nothing in (" </think> <answer> 1 r 2 </answer>", " maybe </think> <answer> 3 </answer>"):
        assert notation.consistency(PROBLEM, completion(nothing)).score is None
    assert notation.consistency(PROBLEM, completion(" 8 / 6")).score == 0.0  # it never closes
    with pytest.raises(ValueError, match="french"):
        notation.consistency(PROBLEM, mixed, notation="french")


@pytest.mark.parametrize(
    ("thinking", "tidy"),
    [
        ("8 / 6 = 1 r 2", "eight by six is one rest two"),
        ("8 / 6 = 1 r 3 wait 8 / 6 = 1 r 2 , 2 / 6 = 0 r 2",
         "eight by six is one rest two , two by six is zero rest two"),
        ("8 / 6 = 1 r 2 check eight by six is one rest two", "eight by six is one rest two"),
        ("8 / 6 = 1 r 2 check 8 / 6 = 1 r 3", None),
        ("", None),
    ],
)  # fmt: skip
def test_chains_are_tidied_by_rule(thinking, tidy):
    text = notation.tidied(PROBLEM, completion(f" {thinking} </think> <answer> 1 r 2 </answer>"))
    assert text == (None if tidy is None else f" {tidy} </think> <answer> 1 r 2 </answer>")


def test_the_dials_of_notation_change_no_other_document():
    plain, dialled = documents(seed=3), documents(seed=3, words=0.4, mixed=0.3, everyday=0.1)
    kinds, changed = Counter(), 0
    for index in range(2000):
        before, after = plain[index], dialled[index]
        kinds[after.kind] += 1
        if after.kind == "chat":
            continue
        assert (before.kind, before.prompt) == (after.kind, after.prompt)
        assert notation.in_words(before.response) == notation.in_words(after.response)
        changed += before.response != after.response
    assert kinds["chat"] == pytest.approx(200, abs=45)
    assert changed > 400
    with pytest.raises(ValueError, match="words, mixed"):
        documents(words=0.7, mixed=0.5)


# --- everyday requests -----------------------------------------------------------------------


def test_replies_are_rated_as_they_were_made():
    stream, rng = everyday.load("train"), random.Random(0)
    for index in range(200):
        problem = stream[index]
        for level in range(everyday.LEVELS):
            assert everyday.rate(problem, everyday.reply(problem, level, rng)) == level
        assert everyday.rate(problem, problem.answer) == everyday.LEVELS - 1
        assert everyday.rate(problem, None) == 0


def test_pairs_are_of_training_questions_and_the_better_reply_is_chosen():
    held_out = {everyday.load("test")[i].question for i in range(2000)}
    problems = {p.question: p for p in (everyday.load("train", seed=1)[i] for i in range(300))}
    for pair in everyday.pairs(num=300):
        assert pair["question"] not in held_out
        rated = [
            everyday.rate(problems[pair["question"]], TEMPLATE.read(pair[side]).answer)
            for side in ("chosen", "rejected")
        ]
        assert rated[0] > rated[1]


def test_no_rule_judges_everyday_requests_in_training():
    from r1lab.config.recipe import RewardSettings
    from r1lab.verify import Verifiers

    judge = Verifiers([RewardSettings(reward="problem")], template=TEMPLATE)
    for source, score in (("everyday", None), ("r1lab.data.everyday:judged", 1.0)):
        problem = load_problems(SourceSettings(source=source), "train")[0]
        right = completion(f" </think> <answer> {problem.answer} </answer>")
        (scored,) = judge.score([Rollout(problem, (1,), (right,))])
        assert scored.outcomes[0].score == score


# --- rows ------------------------------------------------------------------------------------


def test_rows_come_from_files_and_functions_and_are_drawn_by_the_seed(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"p{i}", "completion": "c"}) + "\n"
                            for i in range(50)))  # fmt: skip
    settings = [RowsSettings(path=str(path), num=10),
                RowsSettings(path="r1lab.data.everyday:examples", num=5)]  # fmt: skip
    first, again, other = (read_rows(settings, ("prompt", "completion"), s) for s in (1, 1, 2))
    assert first == again != other and len(first) == 15
    assert len({row["prompt"] for row in first[:10]}) == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "p", "text": "c"}\n', "row 1: no column 'completion'"),
        ('{"prompt": "p", "completion": ""}\n', "must be non-empty text"),
        ("", "has no rows"),
        ("nonsense\n", "line 1: not JSON"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_refused_in_a_line(tmp_path, text, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message) as refused:
        read_rows([RowsSettings(path=str(path))], ("prompt", "completion"))
    assert "\n" not in str(refused.value)


def test_only_what_follows_the_prompt_is_learnt_and_the_end_with_it():
    tokenizer = build_tokenizer()
    row = {"prompt": TEMPLATE.prompt(PROBLEM.question), "completion": " </think> 1 r 2"}
    (encoded,), left_out = encoded_rows([row, row | {"completion": "1 " * 90}], tokenizer,
                                        "completion", 40)  # fmt: skip
    learnt = [t for t, m in zip(encoded["input_ids"], encoded["completion_mask"], strict=True) if m]
    assert left_out == 1
    assert learnt == [*tokenizer.encode(" </think> 1 r 2"), tokenizer.eos_token_id]


# --- rejection -------------------------------------------------------------------------------


def group(*pairs):
    completions, outcomes = zip(*pairs, strict=True)
    return ScoredGroup(Rollout(PROBLEM, (1,), completions), outcomes)


def right(text, parts=None):
    return completion(text), Verdict(1.1, "", parts or {"accuracy": 1.0, "format": 1.0})


def test_rejection_keeps_right_answers_that_differ_and_counts_the_rest():
    scored = group(
        right(" one two three four five </think> 1"),
        right(" one two three four five </think> 1"),
        right(" wholly other words than those </think> 1"),
        right(" a third one that is no longer wanted </think> 1"),
        right(" wrong words here </think> 2", {"accuracy": 0.0, "format": 1.0}),
        right(" no verdict here </think> 2", {"format": 1.0}),
        (completion(" cut", "length"), Verdict(1.1, "", {"accuracy": 1.0, "format": 1.0})),
        (completion(" killed </think> 1"), ScoringFailure("timeout", "5 s")),
    )
    why = Counter()
    rows = list(kept_rows(scored, KeepSettings(per_problem=2), TEMPLATE, None, why))
    assert [row["completion"].split()[0] for row in rows] == ["one", "wholly"]
    assert why == {
        "kept": 2, "near-duplicate": 1, "enough of its problem": 1, "accuracy below 1": 1,
        "accuracy does not apply": 1, "cut off": 1, "fault: timeout": 1,
    }  # fmt: skip
    assert rows[0]["prompt"] == TEMPLATE.prompt(PROBLEM.question)


def test_the_shortest_come_first_where_they_are_preferred():
    scored = group(right(" a long chain of words </think> 1"), right(" short </think> 1"))
    keep = KeepSettings(prefer="shortest")
    (row,) = kept_rows(scored, keep, TEMPLATE, None, Counter())
    assert row["completion"].startswith(" short")


def test_likeness_is_of_pieces_and_a_threshold_needs_its_reward():
    assert alike("a b c d", "a b c d") == 1.0 and alike("a b c d", "e f g h") == 0.0
    assert alike("a b c d", "a b c e") == pytest.approx(1 / 3)
    with pytest.raises(RecipeError, match="unknown reward; there are accuracy"):
        check_names(KeepSettings(least={"language": 1.0}), ("accuracy", "format"))


# --- plan and guard --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    out = tmp_path_factory.mktemp("nano")
    recipe = load_recipe(NANO, [("output", str(out))], schema=PipelineRecipe)
    return recipe, stages_of(recipe, beside=NANO.parent)


def test_the_shipped_pipeline_hands_models_and_rows_on(nano):
    _, stages = nano
    by_name = {stage.name: stage for stage in stages}
    assert str(by_name["zero"].recipe.model.path) == str(by_name["base"].artefact)
    assert by_name["dev1"].recipe.rows[0].path == str(by_name["chains"].artefact)
    asked = by_name["r1"].recipe.rewards[3].options
    assert asked["path"] == str(by_name["preferences"].artefact)
    assert by_name["rl_only"].recipe.steps == 50
    assert by_name["zero"].artefact.parts[-3:] == ("checkpoints", "step-60", "model")


def test_a_part_of_a_pipeline_is_what_it_needs_or_what_needs_it(nano):
    _, stages = nano
    assert [s.name for s in chosen(stages, "dev1")] == ["base", "zero", "chains", "dev1"]
    assert below(stages, "answers") == {
        "answers", "distilled", "distilled_small", "on_policy",
    }  # fmt: skip
    with pytest.raises(RecipeError, match=r"--until: unknown stage 'dev4' \(did you mean"):
        chosen(stages, "dev4")


def test_a_fingerprint_follows_recipe_and_inputs_but_not_places(nano, tmp_path):
    _, stages = nano
    elsewhere = load_recipe(NANO, [("output", str(tmp_path))], schema=PipelineRecipe)
    moved = stages_of(elsewhere, beside=NANO.parent)
    other_seed = stages_of(
        load_recipe(NANO, [("seed", "1")], schema=PipelineRecipe), beside=NANO.parent
    )
    index = [stage.name for stage in stages].index("dev1")
    digests = {"base": "a", "chains": "b"}
    fingerprint = stages[index].fingerprint(digests)
    assert moved[index].fingerprint(digests) == fingerprint
    assert other_seed[index].fingerprint(digests) != fingerprint
    assert stages[index].fingerprint({"base": "a", "chains": "c"}) != fingerprint


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"a": {"kind": "sft", "recipe": "sft", "model": "b"}}, "'b' is not an earlier stage"),
        ({"a": {"kind": "sample", "recipe": "x"}, "b": {"kind": "rl", "recipe": "x", "model": "a"}},
         "'a' is of kind sample; must be one of pretrain"),
        ({"a": {"kind": "distil", "recipe": "x"}}, "teacher: required for kind distil"),
        ({"a": {"kind": "sample", "recipe": "x"}, "b": {"kind": "rl", "recipe": "x",
                                                        "rows": {"a": None}}}, "b.rows: not"),
    ],
)  # fmt: skip
def test_stages_that_do_not_join_are_refused(tmp_path, stages, message):
    path = tmp_path / "pipeline.yaml"
    path.write_text(json.dumps({"name": "p", "stages": stages}))
    with pytest.raises(RecipeError, match=message):
        load_recipe(path, schema=PipelineRecipe)


def test_a_held_out_question_in_a_training_set_stops_the_pipeline(nano, tmp_path):
    recipe, stages = nano
    held_out = held_out_questions(recipe)
    assert len(held_out) >= 3 * recipe.num_problems
    by_name = {stage.name: stage for stage in stages}
    for name in ("base", "zero", "chains", "preferences"):
        assert check_stage(by_name[name], held_out) > 1000
    question = min(held_out)
    rows = Path(by_name["dev1"].recipe.rows[0].path)
    rows.parent.mkdir(parents=True)
    row = {"prompt": TEMPLATE.prompt(question.upper()), "completion": "c"}
    rows.write_text(json.dumps(row) + "\n")
    with pytest.raises(RunStopped, match=r"stage dev1: .* holds the held-out question"):
        check_stage(by_name["dev1"], held_out)


def test_streams_of_the_pipeline_hold_no_held_out_question(nano):
    recipe, stages = nano
    held_out = held_out_questions(recipe)
    zero = next(stage for stage in stages if stage.name == "r1")
    mixture = load_mixture(zero.recipe.problems, "train")
    assert not {mixture[i].question.lower() for i in range(3000)} & held_out
