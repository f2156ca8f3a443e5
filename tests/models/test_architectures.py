"""Every known architecture: the plain model and its bridge are steered alike."""

from __future__ import annotations

import json

import pytest
import torch
from plain_models import SETTINGS, random_model, random_steering, shape, tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

import radiant_lens as rl
from radiant_lens.checkup import CHECKS, check_up
from radiant_lens.errors import InvalidArgumentError, ModelLoadError, RadiantError, UnknownNameError
from radiant_lens.models.identity import signature
from radiant_lens.models.loading import load_plain, projection_paths
from radiant_lens.sites import PROJECTION_PATHS, head_hook, hook_name, input_width, output_projections


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The tokenizer in a folder of its own: beside a configuration, some types read it as one of their own kind."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer().save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module", params=sorted(SETTINGS))
def pair(request, tmp_path_factory, words):
    """A plain model and its bridge, from the same folder."""
    folder = tmp_path_factory.mktemp(request.param)
    random_model(request.param).save_pretrained(folder)
    bridge = rl.load_model(folder, tokenizer=words)
    return load_plain(folder, bridge), bridge


@pytest.fixture
def tokens(pair):
    return torch.randint(5, pair[0].config.vocab_size, (3, 7), generator=torch.Generator().manual_seed(1))


def test_every_check_of_the_doctor_holds(pair):
    plain, bridge = pair
    findings = check_up(bridge, plain)
    assert [f.check for f in findings] == list(CHECKS)
    assert [f for f in findings if not f.holds] == []
    assert not [f for f in findings if "not compared" in f.detail]


def test_hook_z_is_where_steer_edits_the_plain_model(pair):
    plain, bridge = pair
    assert [dict(plain.named_modules())[path] for path in projection_paths(bridge)] == output_projections(plain)
    layers = range(bridge.cfg.n_layers)
    assert [head_hook(bridge, layer) for layer in layers] == [bridge.hook_dict[hook_name(layer)] for layer in layers]


@pytest.mark.parametrize("gate", ["head", "vote", "none"])
def test_bridge_and_plain_model_are_steered_alike(pair, tokens, gate):
    plain, bridge = pair
    steering = random_steering(*shape(plain), gate=gate)
    with torch.no_grad():
        unsteered = plain(tokens).logits
        with rl.steer(bridge, steering):
            expected = bridge(tokens)
        with rl.steer(plain, steering):
            steered = plain(tokens).logits
        with rl.steer(plain, steering, start=2):
            from_second = plain(tokens).logits
        with rl.steer(bridge, steering, start=2):
            expected_from_second = bridge(tokens)
        again = plain(tokens).logits
    torch.testing.assert_close(steered, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(from_second, expected_from_second, rtol=1e-5, atol=1e-5)
    assert torch.equal(steered[:, :-1], unsteered[:, :-1])
    assert not torch.allclose(steered[:, -1], unsteered[:, -1], atol=1e-3)
    assert torch.equal(from_second[:, :2], unsteered[:, :2])
    assert not torch.allclose(from_second[:, 2], unsteered[:, 2], atol=1e-3)
    assert torch.equal(again, unsteered)


def test_a_model_and_its_bridge_have_one_signature(pair):
    plain, bridge = pair
    # A plain model gets tokens, so it has no rule for special ones.
    assert {**signature(plain), "prepend_bos": True} == signature(bridge)
    first = next(plain.parameters())
    before = first.detach().clone()
    with torch.no_grad():
        first.mul_(2)
    for key in ("weights", "content"):
        assert signature(plain)[key] != signature(bridge)[key]
    with torch.no_grad():
        first.copy_(before)


def test_every_known_type_is_tried():
    # The multimodal Gemma 3 has the text model inside; see below.
    assert set(PROJECTION_PATHS) - set(SETTINGS) == {"gemma3"}


def test_a_text_model_inside_another_is_found():
    from transformers import Gemma3ForConditionalGeneration

    text = {**SETTINGS["gemma3_text"], "vocab_size": 64}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Gemma3ForConditionalGeneration(AutoConfig.for_model("gemma3", text_config=text, vision_config=vision))
    projections = output_projections(model)
    assert [input_width(p) for p in projections] == [64, 64]
    assert projections[0] is model.model.language_model.layers[0].self_attn.o_proj


CANNOT_WORK = {
    "mamba": ({"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}, "has no 'blocks.0.attn.hook_z'"),
    "bert": (
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
        "does not generate text",
    ),
    "deepseek_v3": (
        {
            **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "moe_intermediate_size"), 16),
            **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim"), 8),
            **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
            **{"v_head_dim": 12, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
        },
        "has 4 heads of 8, but its output projection in layer 0 reads 48 values: they cannot be told apart by head",
    ),
}


@pytest.mark.parametrize("model_type", CANNOT_WORK)
def test_models_that_cannot_work_are_refused_at_load(model_type, tmp_path, words, command_line):
    settings, message = CANNOT_WORK[model_type]
    config = AutoConfig.for_model(model_type, vocab_size=len(words), **settings)
    auto = AutoModelForMaskedLM if model_type == "bert" else AutoModelForCausalLM
    auto.from_config(config).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=message):
        rl.load_model(tmp_path)
    status, out, _ = command_line("doctor", tmp_path, "--json")
    report = json.loads(out)
    assert (status, report["ok"]) == (1, False)
    assert message in report["checks"][0]["detail"]


@pytest.fixture(scope="module")
def unsound(tmp_path_factory, words):
    """Makes a plain model and a bridge whose weights a test may change."""
    folder = tmp_path_factory.mktemp("llama")
    random_model("llama").save_pretrained(folder)

    def make():
        bridge = rl.load_model(folder, tokenizer=words)
        return load_plain(folder, bridge), bridge

    return make


def failures(plain, bridge):
    return {f.check: f.detail for f in check_up(bridge, plain) if not f.holds}


def test_another_model_fails_the_check_up(unsound):
    plain, bridge = unsound()
    with torch.no_grad():
        plain.model.layers[1].self_attn.q_proj.weight.mul_(1.1)
    details = failures(plain, bridge)
    assert set(details) >= {"hook_z is the input of the output projection", "logits agree with plain transformers"}
    assert "max difference" in details["logits agree with plain transformers"]
    # The heads of the first layer agree.
    with torch.no_grad():
        plain.model.layers[1].self_attn.q_proj.weight.div_(1.1)
        plain.lm_head.weight.mul_(1.1)
    assert "hook_z is the input of the output projection" not in failures(plain, bridge)


def test_heads_that_do_nothing_fail_the_check_up(unsound):
    plain, bridge = unsound()
    with torch.no_grad():
        for projection in [*output_projections(plain), *(block.attn.o.original_component for block in bridge.blocks)]:
            projection.weight.zero_()
    details = failures(plain, bridge)
    assert details["steered logits agree with plain transformers"] == "Steering changes nothing."
    assert details["gradient at hook_z"] == "The gradient at `hook_z` is zero or not finite."
    assert "logits agree with plain transformers" not in details


def test_weights_that_are_not_finite_fail_the_check_up(unsound):
    plain, bridge = unsound()
    with torch.no_grad():
        for model in (plain, bridge.original_model):
            next(model.parameters()).fill_(torch.nan)
    details = failures(plain, bridge)
    assert details["logits agree with plain transformers"].startswith("max difference nan")
    assert "must be finite" in details["collect and fit"]


def test_any_error_of_a_check_is_its_finding(unsound, monkeypatch):
    plain, bridge = unsound()
    monkeypatch.setattr(plain, "forward", lambda *args, **options: {}["gone"])
    assert failures(plain, bridge)["logits agree with plain transformers"] == "KeyError: 'gone'"


def test_a_type_that_steer_does_not_know_is_not_compared(unsound):
    plain, bridge = unsound()
    plain.config.model_type = "lama"
    assert failures(plain, bridge) == {}
    details = {f.check: f.detail for f in check_up(bridge, plain)}
    assert (
        "`steer` does not know plain models of type 'lama'" in details["steered logits agree with plain transformers"]
    )


def test_refusals():
    model = random_model("llama")
    steering = random_steering(*shape(model))
    model.config.model_type = "lama"
    with pytest.raises(UnknownNameError, match="'lama' is not a known model type: did you mean 'llama'"):
        with rl.steer(model, steering):
            pass
    model.config.model_type = "gpt2"
    with pytest.raises(InvalidArgumentError, match="must have one module 'h.0.attn.c_proj'; it has 0"):
        with rl.steer(model, steering):
            pass
    with pytest.raises(InvalidArgumentError, match="must be a TransformerBridge or a PreTrainedModel; got Linear"):
        with rl.steer(torch.nn.Linear(2, 2), steering):
            pass


def test_steering_a_model_that_does_not_call_its_projection_is_an_error():
    model = random_model("llama")
    attention = model.model.layers[1].self_attn
    attention.forward = lambda hidden_states, **kwargs: (hidden_states, None)
    with pytest.raises(RadiantError, match="ran without calling the output projection of layer 1"):
        with torch.no_grad(), rl.steer(model, random_steering(*shape(model))):
            model(torch.tensor([[5, 6]]))
    with rl.steer(model, random_steering(*shape(model))):
        pass
