"""Each stage of the pipeline alone, on a tiny budget: real TRL, real samples, real folders."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from r1lab.config.recipe import (
    EvaluationSettings,
    ModelSettings,
    PretrainRecipe,
    ProblemSettings,
    RewardSettings,
    SamplingRecipe,
    SourceSettings,
    TrackingSettings,
    TrainRecipe,
)
from r1lab.config.stages import (
    DistilRecipe,
    KeepSettings,
    RewardModelRecipe,
    RowsSettings,
    SampleRecipe,
    SftRecipe,
)
from r1lab.types import RecipeError

EXAMPLES = "r1lab.data.everyday:examples"
PAIRS = "r1lab.data.everyday:pairs"


def weights(folder):
    return {
        name: tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """(V3-style, dense): of the smallest sizes, never trained."""
    from r1lab.model.tokenizer import build_tokenizer
    from r1lab.model.weights import save_checkpoint_folder
    from r1lab.stages.pretrain import build_model

    folder, found = tmp_path_factory.mktemp("bases"), []
    for size in ("pico", "dense-small"):
        recipe = PretrainRecipe(name=size, size=size, tokens=1, dtype="float32")
        save_checkpoint_folder(build_model(recipe), build_tokenizer(), folder / size)
        found.append(folder / size)
    return found


def model(folder):
    return ModelSettings(path=str(folder), dtype="float32")


def test_a_dense_base_is_pre_trained_and_its_card_says_nothing_of_experts(tmp_path):
    from r1lab.stages.pretrain import pretrain

    recipe = PretrainRecipe(
        name="dense", size="dense-small", output=str(tmp_path), tokens=1_500, tokens_per_batch=512,
        row_length=128, card_problems=0, dtype="float32",
    )  # fmt: skip
    folder = pretrain(recipe)
    card = json.loads((folder / "card.json").read_text())
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    assert "expert_load" not in card and card["tokens"] >= 1_500
    assert "A dense base of" in (folder / "README.md").read_text()


def test_supervised_fine_tuning_learns_completions_and_goes_on(bases, tmp_path):
    """The loss falls; router biases stay; a run that was cut off goes on from its last state."""
    from r1lab.stages.sft import sft

    def recipe(folder, **changes):
        return SftRecipe(
            name="sft", output=str(folder), model=model(bases[0]), batch_size=16,
            micro_batch_size=8, learning_rate=3e-3, checkpoint_every=5,
            rows=(RowsSettings(path=EXAMPLES, num=96),), **changes,
        )  # fmt: skip

    made = sft(recipe(tmp_path / "whole", epochs=3))
    lines = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().split("\n")
             if line]  # fmt: skip
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.8 * losses[0], losses
    summary = json.loads((tmp_path / "whole/summary.json").read_text())
    assert summary["rows"] == 96 and summary["updates"] == 18 and not summary["rows_left_out"]
    before, after = weights(bases[0]), weights(made)
    assert before.keys() == after.keys()
    biases = [name for name in before if "e_score_correction_bias" in name]
    assert biases and all(torch.equal(before[name], after[name]) for name in biases)
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    # What TRL leaves of a run that is killed: its states, and no summary.
    from r1lab.stages import supervised

    kept = supervised.shutil.rmtree
    try:
        supervised.shutil.rmtree = lambda *args, **kwargs: None
        sft(recipe(tmp_path / "cut", epochs=1))
    finally:
        supervised.shutil.rmtree = kept
    (tmp_path / "cut/summary.json").unlink()
    with pytest.raises(RecipeError, match=r"another recipe.*epochs"):
        sft(recipe(tmp_path / "cut", epochs=3))
    (tmp_path / "cut/recipe.yaml").unlink()
    sft(recipe(tmp_path / "cut", epochs=3))
    assert json.loads((tmp_path / "cut/summary.json").read_text())["updates"] == 18
    for name, tensor in weights(tmp_path / "cut/model").items():
        if name in ("lm_head.weight", "model.embed_tokens.weight"):
            # The first six updates followed a shorter cosine.
            assert torch.allclose(tensor, after[name], atol=0.1)


def test_rejection_sampling_writes_rows_and_goes_on_behind_the_last_chunk(bases, tmp_path):
    from r1lab.stages import sample as stage

    recipe = SampleRecipe(
        name="sample", output=str(tmp_path), model=model(bases[0]), num_problems=70,
        problems=ProblemSettings(sources=(SourceSettings(source="everyday"),)),
        sampling=SamplingRecipe(engine="transformers", group_size=2, max_tokens=40),
        keep=KeepSettings(least={}),
    )  # fmt: skip
    path = stage.sample(recipe)
    whole = path.read_text()
    rows = [json.loads(line) for line in whole.splitlines()]
    assert rows and all(row["completion"] and row["prompt"].startswith("User:") for row in rows)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["questions"] == 70 and summary["rows"] == len(rows)
    assert summary["responses"] == 140 == len(rows) + sum(summary["left_out"].values())
    chunks = (tmp_path / "chunks.jsonl").read_text().splitlines()
    assert len(chunks) == 2
    (tmp_path / "chunks.jsonl").write_text(chunks[0] + "\n" + chunks[1][:30])  # torn by a kill
    path.unlink()
    assert stage.sample(recipe).read_text() == whole


def test_nothing_left_by_the_rewards_is_said_with_the_reasons(bases, tmp_path):
    from r1lab.stages.sample import sample

    recipe = SampleRecipe(
        name="sample", output=str(tmp_path), model=model(bases[0]), num_problems=4,
        problems=ProblemSettings(sources=(SourceSettings(source="division"),)),
        sampling=SamplingRecipe(engine="transformers", group_size=2, max_tokens=4),
    )  # fmt: skip
    with pytest.raises(RecipeError, match=r"no response is left \(.*: \d"):
        sample(recipe)


@pytest.fixture(scope="module")
def reward_model(bases, tmp_path_factory):
    from r1lab.stages.reward_model import train_reward_model

    folder = tmp_path_factory.mktemp("reward-model")
    return train_reward_model(
        RewardModelRecipe(
            name="rm",
            output=str(folder),
            model=model(bases[0]),
            batch_size=16,
            micro_batch_size=16,
            learning_rate=3e-3,
            epochs=4,
            rows=(RowsSettings(path=PAIRS, num=160),),
        )
    )


def test_a_reward_model_tells_better_replies_on_prompts_that_it_has_not_seen(reward_model):
    summary = json.loads((reward_model.parent / "summary.json").read_text())
    assert summary["held_out_rows"] >= 5
    assert summary["held_out_accuracy"] > 0.6


def test_reinforcement_learning_asks_the_reward_model_where_it_is_meant(
    bases, reward_model, tmp_path
):
    from r1lab.grpo.trainer import train
    from r1lab.run_folder import RunFolder

    recipe = TrainRecipe(
        name="rl", output=str(tmp_path), steps=1, model=model(bases[1]),
        problems=ProblemSettings(
            sources=(SourceSettings(source="everyday"), SourceSettings(source="division"))
        ),
        rewards=(
            RewardSettings(reward="problem"),
            RewardSettings(reward="r1lab.stages.scorer:reward_model", isolate=False,
                           options={"path": str(reward_model), "only": "core"}),
        ),
        sampling=SamplingRecipe(engine="transformers", questions_per_step=8, group_size=2,
                                max_tokens=16),
        evaluation=EvaluationSettings(num_problems=2, num_samples=1, greedy=False),
        tracking=TrackingSettings(trackers=()),
    )  # fmt: skip
    train(recipe)
    rows = RunFolder.open(tmp_path).rollouts(1)
    assert {row["source"] for row in rows} == {"everyday", "division"}
    for row in rows:
        parts = dict(row["parts"])
        asked = row["source"] == "everyday"
        assert ("reward_model" in parts) == asked and ("accuracy" in parts) != asked
        assert not asked or 0 < parts["reward_model"] < 1


def test_a_student_is_drawn_to_its_teacher_on_its_own_samples(bases, tmp_path):
    from r1lab.stages.distil import distil

    recipe = DistilRecipe(
        name="distil", output=str(tmp_path), model=model(bases[1]), teacher=model(bases[0]),
        rows=(RowsSettings(path=EXAMPLES, num=16),), epochs=1, batch_size=8, micro_batch_size=8,
        max_tokens=8, learning_rate=1e-3,
    )  # fmt: skip
    made = distil(recipe)
    before, after = weights(bases[1]), weights(made)
    assert before.keys() == after.keys()
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    assert json.loads((tmp_path / "summary.json").read_text())["updates"] == 2


def test_a_teacher_with_another_vocabulary_is_refused(bases, tmp_path):
    from r1lab.stages.distil import distil

    other = tmp_path / "other"
    shutil.copytree(bases[0], other)
    tokenizer = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(tokenizer.replace('"hello"', '"hallo"'))
    recipe = DistilRecipe(
        name="distil", output=str(tmp_path / "out"), model=model(bases[1]), teacher=model(other),
        rows=(RowsSettings(path=EXAMPLES, num=16),), batch_size=16, micro_batch_size=16,
    )  # fmt: skip
    with pytest.raises(RecipeError, match="another vocabulary"):
        distil(recipe)


def test_fewer_prompts_than_an_update_takes_are_refused(bases, tmp_path):
    from r1lab.stages.distil import distil

    recipe = DistilRecipe(
        name="distil", output=str(tmp_path), model=model(bases[1]), teacher=model(bases[0]),
        rows=(RowsSettings(path=EXAMPLES, num=6),), batch_size=8, micro_batch_size=8,
    )  # fmt: skip
    with pytest.raises(RecipeError, match=r"batch_size: 8 .* rows has 6"):
        distil(recipe)
