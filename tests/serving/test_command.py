"""`radiant-lens serve`, up to the start of vLLM."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from radiant_lens.cli.serve import parse_steerings, vllm_options
from radiant_lens.serving import catalog, engine_config, versions


@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        ("serve tiny --steering a", 2, "`--steering` must be NAME=FOLDER; got 'a': write `--steering my-name=a`."),
        ("serve tiny --steering =x", 2, "`--steering` must be NAME=FOLDER; got '=x'"),
        ("serve tiny --steering a=x --steering a=y", 2, "`--steering` has the name 'a' twice"),
        ("serve tiny --steering a=x --default-steering b", 2, "'b' is not a known steering"),
        ("serve tiny --steering a=x --steering b=y --max-steerings 1", 2, "must hold between 1 and 1; got 2"),
        ("serve tiny --steering a=x --additional-config {}", 2, "`--additional-config` is taken by the steerings"),
        ("collect --engine vllm --out x", 2, "`--engine vllm` writes a store: give `--store` in place of `--out`."),
        ("collect --engine vlm --store x", 2, "`engine` must be one of 'transformers', 'vllm', 'ray'; got 'vlm'"),
        ("collect --engine-options {} --store x", 2, "`--engine-options` needs `--engine vllm`; got '{}' without it."),
        ("collect --engine vllm --engine-options [1] --store x", 2, "`--engine-options` must be a JSON object"),
        ("collect --engine vllm --workers 2 --store x", 2, "`--workers` needs `--engine ray`; got 2 with 'vllm'."),
        ("collect --engine vllm --max-tokens 9 --store x", 2, "`--max-tokens` does not go with `--engine vllm`; got 9"),
        ("collect --engine vllm --device cpu --store x", 2, "`--device` does not go with `--engine vllm`; got 'cpu'"),
        ("collect --engine vllm --device-map auto --store x", 2, "`--device-map` does not go with `--engine vllm`"),
    ],
)
def test_wrong_usage_is_one_sentence(line, status, message, command_line):
    result, _, err = command_line(*line.split())
    assert (result, message in err) == (status, True), err


def test_a_missing_folder_is_one_sentence(command_line, monkeypatch):
    monkeypatch.setattr(versions, "vllm_version", lambda: "0.32.0")
    status, _, err = command_line("serve", "tiny", "--steering", "a=./nowhere")
    assert status == 1 and "'./nowhere'" in err


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (None, "Serving needs vLLM, in an environment of its own"),
        ("0.31.2", "works with vLLM 0.32; 0.31.2 is installed"),
    ],
)
def test_vllm_must_be_there(version, message, command_line, monkeypatch):
    for module in (versions, catalog):
        monkeypatch.setattr(module, "vllm_version", lambda: version)
    status, _, err = command_line("serve", "tiny", "--steering", "a=x")
    assert status == 1 and message in err


def test_plugins_that_leave_this_one_out_are_refused(command_line, monkeypatch):
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    status, _, err = command_line("serve", "tiny", "--steering", "a=x")
    assert status == 2 and "`VLLM_PLUGINS` must name radiant_lens" in err


def test_options_of_vllm_are_passed_on():
    config = engine_config({"a": "x"})
    options = vllm_options("./mine", config, ["--port", "8000"])
    assert options == ["--additional-config", json.dumps(config), "--served-model-name", "./mine", "--port", "8000"]
    assert "./mine" not in vllm_options("./mine", config, ["--served_model_name=other"])
    assert parse_steerings(["a=x=y", "b=z"]) == {"a": "x=y", "b": "z"}


def test_serving_imports_no_transformer_lens():
    script = (
        "import sys, radiant_lens.serving, radiant_lens.serving.worker, radiant_lens.serving.frontend\n"
        "assert not {'transformer_lens', 'transformers', 'vllm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
