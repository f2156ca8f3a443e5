"""Models spread over devices by a map: on this machine the CPU and the disk."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import radiant_lens as rl
from radiant_lens.errors import InvalidArgumentError, ModelLoadError
from radiant_lens.models import loading as models
from radiant_lens.models.identity import signature
from radiant_lens.models.precision import default_dtype

HALF = {
    **dict.fromkeys(["model.embed_tokens", "lm_head", "model.rotary_emb", "model.layers.0", "model.norm"], "cpu"),
    **dict.fromkeys(["model.layers.1", "model.layers.2", "model.layers.3"], "disk"),
}
MAPS = {"auto": "auto", "cpu": {"": "cpu"}, "cpu and disk": HALF, "disk": {"": "disk"}}


@pytest.fixture(params=MAPS.values(), ids=MAPS)
def spread(request, tmp_path):
    return rl.load_model("tiny", device_map=request.param, dtype=torch.float32, offload_folder=tmp_path / "weights")


def test_a_map_changes_no_number(spread, model, facts, steering):
    statements = facts.statements[:12]
    assert torch.equal(rl.collect(spread, statements).z, rl.collect(model, statements).z)
    assert torch.equal(
        rl.collect(spread, statements, steering=steering).z, rl.collect(model, statements, steering=steering).z
    )
    tokens = model.to_tokens(next(s.text for s in facts.statements if s.label == 1))
    with torch.no_grad(), rl.steer(spread, steering, start=0), rl.steer(model, steering, start=0):
        assert torch.equal(spread(tokens), model(tokens))
    with torch.no_grad(), rl.steer(spread, steering, start=0):
        assert not torch.equal(spread(tokens), model(tokens))
    assert signature(spread) == signature(model)


def test_a_map_changes_no_evaluation(spread, model, facts, steering):
    few = facts.head(4)
    one, other = (rl.evaluate(m, few, steering, max_new_tokens=8) for m in (spread, model))
    assert one.table["answer"].tolist() == other.table["answer"].tolist()
    assert one.metrics == other.metrics


def test_the_half_on_disk_is_not_in_memory(tmp_path):
    spread = rl.load_model("tiny", device_map=HALF, offload_folder=tmp_path)
    devices = {str(p.device) for p in spread.original_model.model.layers[3].parameters()}
    assert devices == {"meta"}


def test_the_dtype_is_that_of_the_checkpoint(foreign_folder, tmp_path):
    AutoModelForCausalLM.from_pretrained(foreign_folder, dtype=torch.bfloat16).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(foreign_folder).save_pretrained(tmp_path)
    assert rl.load_model(tmp_path, device_map={"": "cpu"}).cfg.dtype == torch.bfloat16
    assert rl.load_model(tmp_path).cfg.dtype == default_dtype(torch.bfloat16, torch.device("cpu"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"device_map": "everywhere"},
            "`device_map` must be one of 'auto', 'balanced', ",
        ),
        ({"device_map": {"": "meta"}}, "`device_map` must put modules on 'cpu', 'disk'.*; got 'meta' for ''"),
        ({"device_map": {"model": "cuda:99"}}, "got 'cuda:99' for 'model'"),
        ({"device_map": "auto", "device": "cpu"}, "goes with a name or a folder, and in place of `device`"),
    ],
    ids=str,
)
def test_refusals(options, words):
    with pytest.raises(InvalidArgumentError, match=words):
        rl.load_model("tiny", **options)


def test_a_loaded_model_stays_where_it_is(model):
    for loaded in (model, model.original_model):
        with pytest.raises(InvalidArgumentError, match="a model that is loaded already stays where it is"):
            rl.load_model(loaded, device_map="auto")


def test_tied_weights_in_two_places_are_an_error(tmp_path):
    with pytest.raises(ModelLoadError, match="lm_head.weight"):
        rl.load_model("tiny", device_map={**HALF, "lm_head": "disk"}, offload_folder=tmp_path)


def test_every_rank_of_a_launch_takes_a_gpu_of_its_own(monkeypatch):
    assert models._device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert models._device(None) == torch.device("cuda")
    for rank, device in [("0", "cuda:0"), ("1", "cuda:1"), ("2", "cuda:0")]:
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert models._device(None) == torch.device(device)
