"""Pre-training: packing keeps documents apart, and a run that was cut goes on bit for bit."""

import json
from itertools import pairwise

import pytest
import torch

from r1lab.config.recipe import PretrainRecipe
from r1lab.data.corpus import Corpus, Dials
from r1lab.model.tokenizer import build_tokenizer
from r1lab.stages import pretrain as stage
from r1lab.types import RecipeError


def recipe(folder, tokens=6_000, **changes):
    return PretrainRecipe(
        name="tiny", output=str(folder), tokens=tokens, tokens_per_batch=512, row_length=128,
        checkpoint_every=1, card_problems=0, dtype="float32", **changes,
    )  # fmt: skip


def test_rows_hold_whole_documents_each_from_position_zero():
    tokenizer, corpus = build_tokenizer(), Corpus(Dials())
    rows = next(iter(stage.PackedCorpus(corpus, tokenizer, recipe("."))))
    assert rows.token_ids.shape == (4, 128)
    for tokens, positions, labels in zip(
        rows.token_ids, rows.position_ids, rows.labels, strict=True
    ):
        for t in range(127):
            if labels[t] != -100:
                assert labels[t] == tokens[t + 1] and positions[t + 1] == positions[t] + 1
        ends = tokens == tokenizer.eos_token_id
        assert (labels[ends] == -100).all()  # nothing is predicted across a document's end
    first = tokenizer.encode(f"{corpus[0].prompt} {corpus[0].response}")
    assert rows.token_ids[0, : len(first)].tolist() == first


def test_a_packed_document_sees_nothing_of_its_neighbours():
    built, tokenizer = recipe("."), build_tokenizer()
    model = stage.build_model(built)
    rows = next(iter(stage.PackedCorpus(Corpus(Dials()), tokenizer, built)))
    with torch.no_grad():
        packed = model(
            input_ids=rows.token_ids[:1], position_ids=rows.position_ids[:1], use_cache=False
        ).logits[0]
        starts = [*(rows.position_ids[0] == 0).nonzero().flatten().tolist(), 128]
        for begin, end in pairwise(starts[1:4]):
            alone = model(input_ids=rows.token_ids[:1, begin:end], use_cache=False).logits[0]
            assert torch.allclose(packed[begin:end], alone, atol=1e-5)


@pytest.mark.parametrize("cut_at", [2_000])
def test_a_run_that_was_cut_goes_on_as_if_it_had_not_been(tmp_path, cut_at):
    whole = stage.pretrain(recipe(tmp_path / "whole"))
    # The first part stops early under the same schedule: what a killed run leaves behind.
    part = recipe(tmp_path / "cut")
    (tmp_path / "cut").mkdir()

    class Cut(Exception):
        pass

    def kill(folder, model, optimizer, progress, recipe, save=stage.save_state):
        save(folder, model, optimizer, progress, recipe)
        if progress.tokens > cut_at:
            raise Cut

    original, stage.save_state = stage.save_state, kill
    try:
        with pytest.raises(Cut):
            stage.pretrain(part)
    finally:
        stage.save_state = original
    with pytest.raises(RecipeError, match=r"another recipe \(learning_rate: 0.002 -> 0.1\)"):
        stage.pretrain(part.model_copy(update={"learning_rate": 0.1}))
    resumed = stage.pretrain(part)
    ours, theirs = (
        json.loads((folder / "card.json").read_text())["sha256"] for folder in (whole, resumed)
    )
    assert ours == theirs
    card = json.loads((whole / "card.json").read_text())
    assert card["tokens"] >= 6_000 and set(card["expert_load"]) > {"all", "boxes"}
    assert card["kv_cache_bytes_per_token"]["mla"] < card["kv_cache_bytes_per_token"]["multi_head"]


def test_rows_that_no_document_fits_are_refused(tmp_path):
    short = recipe(tmp_path).model_copy(update={"row_length": 3})
    with pytest.raises(RecipeError, match="row_length: 3 tokens are too few"):
        next(iter(stage.PackedCorpus(Corpus(Dials()), build_tokenizer(), short)))


def test_a_torn_state_is_named(tmp_path):
    (tmp_path / "state.pt").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(RecipeError, match=r"state\.pt is corrupted"):
        stage.load_state(tmp_path, None, None, recipe(tmp_path))
