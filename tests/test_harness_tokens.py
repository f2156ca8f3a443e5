"""lm-evaluation-harness: the special tokens that a steered model reads are those of the model's own tokenizer."""

from __future__ import annotations

import pytest
import torch
from tokenizers.processors import TemplateProcessing

import radiant_lens as rl
from radiant_lens.datasets.world import make_fact_world, vocabulary
from radiant_lens.models.tokens import encode
from radiant_lens.tiny.train import TrainingConfig, make_model, make_tokenizer

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'radiant-lens[harness]'")

from lm_eval.api.instance import Instance

from radiant_lens.harness import SteeredLM

TEXT = "the capital of dupeka"
TURNS = [{"role": "user", "content": "what is the capital ?"}]
CHATS = {
    "writes BOS": "{{ bos_token }}{% for m in messages %}Q : {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}A :{% endif %}",
    "writes none": "{% for m in messages %}Q : {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}A :{% endif %}",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model whose tokenizer adds BOS, and the same model with a tokenizer that adds none, as SmolLM2's."""
    folders = {}
    for kind in ("adds BOS", "adds none"):
        tokenizer = make_tokenizer(vocabulary(make_fact_world()))
        config = TrainingConfig(architecture="gpt2", n_layers=1, n_heads=2, d_model=16, d_mlp=16, seed=3)
        if kind == "adds none":
            tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
        folders[kind] = tmp_path_factory.mktemp("models") / kind.replace(" ", "-")
        make_model(config, tokenizer).save_pretrained(folders[kind])
        tokenizer.save_pretrained(folders[kind])
    return folders


def has_bos(lm: SteeredLM, ids: list[int]) -> bool:
    assert lm.tokenizer.bos_token_id not in ids[1:]
    return ids[0] == lm.tokenizer.bos_token_id


@pytest.mark.parametrize("prepend_bos", [None, True, False])
@pytest.mark.parametrize("kind", ["adds BOS", "adds none"])
def test_texts_are_read_as_everywhere_in_the_package(folders, kind, prepend_bos):
    bridge = rl.load_model(folders[kind], prepend_bos=prepend_bos)
    expected = (kind == "adds BOS") if prepend_bos is None else prepend_bos
    lm = SteeredLM(bridge)
    assert lm.tok_encode(TEXT) == encode(bridge, [TEXT])[0].ids
    assert has_bos(lm, lm.tok_encode(TEXT)) == expected
    assert not has_bos(lm, lm.tok_encode(TEXT, add_special_tokens=False))
    tokens, mask = lm.tok_batch_encode([TEXT, f"{TEXT} is"])
    assert tokens[1].tolist() == encode(bridge, [f"{TEXT} is"])[0].ids
    assert mask.sum(1).tolist() == [len(lm.tok_encode(TEXT)), len(lm.tok_encode(TEXT)) + 1]
    # The option of the harness has the last word.
    for add_bos_token in (True, False):
        chosen = SteeredLM(bridge, add_bos_token=add_bos_token)
        assert has_bos(chosen, chosen.tok_encode(TEXT)) == add_bos_token


@pytest.mark.parametrize("text", [TEXT, f"<bos> {TEXT}"])
@pytest.mark.parametrize("kind", ["adds BOS", "adds none"])
def test_a_whole_text_is_scored_after_one_bos(folders, kind, text):
    bridge = rl.load_model(folders[kind])
    lm = SteeredLM(bridge)
    ids = [bridge.tokenizer.bos_token_id, *lm.tok_encode(TEXT, add_special_tokens=False)]
    with torch.no_grad():
        log_probs = bridge(torch.tensor([ids]))[0].log_softmax(-1)
    expected = float(log_probs[:-1].gather(1, torch.tensor(ids)[1:, None]).sum())
    (answer,) = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
    assert answer == pytest.approx(expected, rel=1e-5)
    # Afterwards texts have their own special tokens again.
    assert has_bos(lm, lm.tok_encode(TEXT)) == (kind == "adds BOS")


@pytest.mark.parametrize("template", CHATS)
@pytest.mark.parametrize("prepend_bos", [None, True])
@pytest.mark.parametrize("kind", ["adds BOS", "adds none"])
def test_chats_have_the_special_tokens_of_their_template_alone(folders, kind, prepend_bos, template):
    lm = SteeredLM(rl.load_model(folders[kind], prepend_bos=prepend_bos))
    lm.tokenizer.chat_template = CHATS[template]
    text = lm.apply_chat_template(TURNS)
    ids = lm.tokenizer.apply_chat_template(TURNS, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert lm.tok_encode(text) == ids
    assert has_bos(lm, ids) == (template == "writes BOS")
    # A continuation is scored after the same tokens.
    assert lm.tok_encode(f"{text} the capital")[: len(ids)] == ids
    assert lm.tok_batch_encode([text])[0][0].tolist() == ids
    # Other texts are read as before.
    assert lm.tok_encode(TEXT) == encode(lm.bridge, [TEXT])[0].ids


def test_a_text_that_begins_with_bos_has_no_second_one(folders):
    for add_bos_token in (None, True):
        lm = SteeredLM(folders["adds BOS"], add_bos_token=add_bos_token)
        assert has_bos(lm, lm.tok_encode(f"<bos> {TEXT}"))
        assert lm.tok_encode(f"<bos> {TEXT}") == lm.tok_encode(TEXT)


def test_scores_are_those_of_the_tokens_that_the_model_reads(folders):
    """With the BOS that the model does not expect, the same request has another score."""
    request = [Instance("loglikelihood", {}, (TEXT, " is"), 0)]
    scores = []
    for add_bos_token in (None, True):
        lm = SteeredLM(folders["adds none"], add_bos_token=add_bos_token)
        ids = lm.tok_encode(f"{TEXT} is")
        with torch.no_grad():
            log_probs = lm.bridge.original_model(torch.tensor([ids])).logits[0].log_softmax(-1)
        scores.append(lm.loglikelihood(request)[0][0])
        assert scores[-1] == pytest.approx(float(log_probs[-2, ids[-1]]), abs=1e-5)
    assert abs(scores[0] - scores[1]) > 1e-4


def test_a_long_text_keeps_its_end(folders):
    lm = SteeredLM(folders["adds BOS"])
    assert lm.tok_encode(TEXT, left_truncate_len=2) == lm.tok_encode(TEXT)[-2:]


def test_a_model_from_a_folder_reads_as_its_activations_were_collected(foreign_folder):
    lm = SteeredLM(foreign_folder, batch_size=2)
    assert lm.tok_encode("the capital") == lm.bridge.to_tokens("the capital")[0].tolist()
    assert lm.tok_encode("the capital", add_special_tokens=False) == lm.tok_encode("the capital")[1:]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate([("the", " capital"), ("soup", " is")])]
    assert lm.loglikelihood(requests) == lm.loglikelihood(requests)
