"""Names and strengths of requests, configurations of engines, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from serving.steerings import make_steering

from radiant_lens.errors import (
    ArtefactError,
    InvalidArgumentError,
    MissingPackageError,
    ModelMismatchError,
    UnknownNameError,
)
from radiant_lens.serving import catalog as catalogs
from radiant_lens.serving import engine_config, versions
from radiant_lens.serving.catalog import Catalog, read_catalog, require_model
from radiant_lens.serving.request_traces import TracedRequest
from radiant_lens.serving.requests import Choice, as_row, as_traced, cache_key, choose, resolved
from radiant_lens.serving.rows import SteeredRequest

SHAPE = (2, 4, 8)


def make_catalog(default: str | None = None) -> Catalog:
    steerings = {"truthful": make_steering(SHAPE), "swap": make_steering(SHAPE, kind="resample")}
    return Catalog({name: f"./{name}" for name in steerings}, steerings, default)


@pytest.mark.parametrize(
    ("extra_args", "choice"),
    [
        (None, None),
        ({"other": 1}, None),
        ({"steering": "truthful"}, Choice("truthful", 1.0)),
        ({"steering": "truthful", "strength": -2}, Choice("truthful", -2.0)),
        ({"steering": "truthful", "strength": 0}, None),
        ({"steering": "none"}, None),
        ({"steering": "swap", "strength": 1}, Choice("swap", 1.0)),
    ],
)
def test_a_request_chooses(extra_args, choice):
    assert choose(extra_args, make_catalog()) == choice


def test_the_default_is_for_requests_that_name_none():
    catalog = make_catalog("truthful")
    assert choose(None, catalog) == Choice("truthful", 1.0)
    assert choose({"strength": 0.5}, catalog) == Choice("truthful", 0.5)
    assert choose({"steering": "swap"}, catalog) == Choice("swap", 1.0)
    assert choose({"steering": "none"}, catalog) is None


@pytest.mark.parametrize(
    ("extra_args", "error", "message"),
    [
        ({"steering": "truthfull"}, UnknownNameError, "'truthfull' is not a known steering: did you mean 'truthful'"),
        ({"steering": 3}, InvalidArgumentError, "`steering` must be the name of a steering; got 3"),
        ({"steering": "truthful", "strength": float("nan")}, InvalidArgumentError, "`strength` must lie.*got nan"),
        ({"steering": "truthful", "strength": float("inf")}, InvalidArgumentError, "`strength` must lie.*got inf"),
        ({"steering": "truthful", "strength": "much"}, InvalidArgumentError, "`strength` must lie.*got 'much'"),
        ({"steering": "truthful", "strength": True}, InvalidArgumentError, "`strength` must lie.*got True"),
        ({"strength": 2}, InvalidArgumentError, "`strength` needs a `steering`; got 2 alone: name one of 'truthful'"),
        ({"steering": "swap", "strength": 2}, InvalidArgumentError, "has no strength; got 2: leave `strength` out"),
        ({"steering": "swap", "trace": 1}, InvalidArgumentError, "`trace` needs a server that writes traces: start it"),
        ({"steering": "swap", "trace": "yes"}, InvalidArgumentError, "`trace` must be true or false; got 'yes'"),
    ],
)
def test_what_a_request_may_not_ask_for(extra_args, error, message):
    with pytest.raises(error, match=message):
        choose(extra_args, make_catalog())


@pytest.mark.parametrize("arguments", [{}, {"steering": "none"}, {"steering": "truthful", "strength": 0}])
def test_a_trace_needs_edits(arguments):
    catalog = replace(make_catalog(), trace_file="traces.jsonl")
    with pytest.raises(InvalidArgumentError, match="`trace` needs a `steering` with a strength other than 0"):
        choose({**arguments, "trace": True}, catalog)
    choice = choose({"steering": "truthful", "trace": 1.0}, catalog)
    assert choice == Choice("truthful", 1.0, True)
    arguments = resolved({"steering": "truthful", "trace": 1.0}, choice)
    assert arguments == {"steering": "truthful", "strength": 1.0, "trace": True}
    assert as_traced(arguments, 5, catalog) == TracedRequest("truthful", catalog.number("truthful"), 1.0, 4)
    assert as_traced({"steering": "truthful", "strength": 1.0}, 5, catalog) is None


def test_resolved_arguments_keep_those_of_others():
    assert resolved({"steering": "truthful", "seed": 1}, Choice("truthful", 1.0)) == {
        "seed": 1,
        "steering": "truthful",
        "strength": 1.0,
    }
    assert resolved({"steering": "none", "strength": 0.0}, None) is None
    assert resolved(None, None) is None


def test_rows_begin_at_the_last_prompt_token():
    catalog = make_catalog()
    assert as_row({"steering": "swap", "strength": 1.0}, 7, catalog) == SteeredRequest(1, 1.0, first=6)
    assert as_row({"other": 1}, 7, catalog) is as_row(None, 7, catalog) is None


def test_blocks_are_told_apart_from_the_first_edited_token_on():
    steered = {"steering": "truthful", "strength": 1.0}
    assert cache_key(steered, 33, 32) is None
    # Position 31, the last of the prompt, is in the block that ends before 32.
    first = cache_key(steered, 32, 32)
    others = [cache_key({**steered, "strength": 2.0}, 32, 32), cache_key({**steered, "steering": "swap"}, 32, 32)]
    assert len({first, *others, cache_key(steered, 30, 32), None}) == 5
    assert cache_key(None, 32, 64) is cache_key({"other": 1}, 32, 64) is None


def test_the_configuration_of_an_engine(tmp_path):
    folder = make_steering(SHAPE).save(tmp_path / "one")
    config = engine_config({"one": folder}, default="one")
    catalog = read_catalog(config)
    assert catalog is not None and list(catalog.steerings) == ["one"] and catalog.default == "one"
    assert read_catalog({}) is read_catalog(SimpleNamespace()) is None
    # A worker adds the layers.
    config["radiant_lens"]["layers"] = [0, 1]
    assert read_catalog(config) is not None


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: engine_config({}), InvalidArgumentError, "between 1 and 16; got 0"),
        (lambda: engine_config({"a": "x", "b": "x"}, most=1), InvalidArgumentError, "between 1 and 1; got 2: raise"),
        (lambda: engine_config({"none": "x"}), InvalidArgumentError, "and not 'none'; got 'none'"),
        (lambda: engine_config({"a b": "x"}), InvalidArgumentError, "must be letters, digits.*got 'a b'"),
        (lambda: engine_config({"a": "x"}, default="b"), UnknownNameError, "'b' is not a known steering"),
        (
            lambda: engine_config({"a": "x"}, most=0),
            InvalidArgumentError,
            "`most` must be a whole number",
        ),
        (
            lambda: read_catalog({"radiant_lens": 3}),
            InvalidArgumentError,
            "`radiant_lens` must be a dict",
        ),
        (
            lambda: read_catalog({"radiant_lens": {"folder": "x"}}),
            InvalidArgumentError,
            "must have the keys.*folder",
        ),
        (lambda: read_catalog(engine_config({"a": "./nowhere"})), ArtefactError, "nowhere"),
    ],
)
def test_wrong_configurations(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_another_release_of_vllm_is_refused(monkeypatch):
    monkeypatch.setattr(catalogs, "vllm_version", lambda: "0.40.1")
    with pytest.raises(MissingPackageError, match=r"works with vLLM 0\.32; 0\.40\.1 is installed: pip install"):
        engine_config({"a": "x"})
    monkeypatch.setattr(catalogs, "vllm_version", lambda: None)
    assert engine_config({"a": "x"})
    monkeypatch.setattr(versions, "vllm_version", lambda: None)
    with pytest.raises(MissingPackageError, match="Serving needs vLLM, in an environment of its own"):
        versions.require_vllm()


def test_a_steering_of_another_model_is_refused():
    config = SimpleNamespace(num_hidden_layers=2, num_attention_heads=4, model_type="llama", vocab_size=64)
    require_model(make_catalog(), config, 8)
    with pytest.raises(ModelMismatchError, match="'truthful' is for a model with 2 layers of 4 heads of length 8"):
        require_model(make_catalog(), config, 16)
    made = make_steering(SHAPE, model={"name": "mine", "config": {"model_type": "llama", "vocab_size": 99}})
    with pytest.raises(ModelMismatchError, match="'a' was fitted on 'mine', whose `vocab_size` is 99; this"):
        require_model(Catalog({"a": "x"}, {"a": made}, None), config, 8)
