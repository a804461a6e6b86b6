"""An experiment from nothing to its verdict: a real run with vLLM, far too short for its claim."""

from r1lab.jobs import run_tasks
from r1lab.reproduce.campaign import Campaign
from r1lab.reproduce.draw import draw_experiment
from r1lab.reproduce.experiment import load_experiment

SHORT = (
    "--steps=2", "--sampling.questions_per_step=4", "--sampling.group_size=4",
    "--sampling.max_tokens=48", "--evaluation.every=1", "--evaluation.num_problems=8",
    "--evaluation.num_samples=4",
)  # fmt: skip


def test_an_experiment_is_run_once_and_read_off_its_runs(tmp_path):
    experiment = load_experiment("accuracy")
    campaign = Campaign(tmp_path, [experiment], [7], SHORT)
    said: list[str] = []
    assert run_tasks(campaign.tasks(), jobs=1, threads=1, say=said.append) == []
    assert run_tasks(campaign.tasks(), jobs=1, threads=1, say=said.append) == []
    assert [line.split(":")[0] for line in said] == ["zero, seed 7"] * 2  # started, done
    records = campaign.records(experiment)
    (record,) = records["zero"]
    assert record.steps == 2 and record.k == 4 and record.num_problems == 8
    assert [step for step, _ in record.curve("pass_at_1")] == [0, 1, 2]
    outcome = campaign.outcome(experiment)
    assert outcome.seeds == (7,) and outcome.verdict == "not reproduced"
    assert draw_experiment(experiment, records, tmp_path / "a.png").stat().st_size > 10_000
