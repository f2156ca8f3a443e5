"""`radiant-lens serve`: one server, asked over HTTP."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from plain_models import shape
from serving.engines import expected_answers, make_model, prompts
from serving.steerings import make_steering

import radiant_lens as rl

pytestmark = pytest.mark.filterwarnings("ignore")
N_NEW = 12


class Client:
    def __init__(self, port: int) -> None:
        self._address = f"http://127.0.0.1:{port}"
        self.traces = Path()

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self._address + path, timeout=60) as answer:
            return answer.read().decode()

    def complete(self, row: list[int], extra: dict | None = None, **options) -> tuple[int, dict]:
        """Status and body; `extra` are the arguments that `extra_body` of an OpenAI client would bring."""
        body = {"model": "mine", "prompt": row, "max_tokens": N_NEW, "temperature": 0, "ignore_eos": True, **options}
        body["return_token_ids"] = True
        if extra is not None:
            body["vllm_xargs"] = extra
        request = urllib.request.Request(
            f"{self._address}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def answer(self, row: list[int], extra: dict | None = None) -> list[int]:
        status, body = self.complete(row, extra)
        assert status == 200, body
        return body["choices"][0]["token_ids"]


@pytest.fixture(scope="module")
def served(vllm, tmp_path_factory):
    """A client, the model in transformers, and the steerings of the server."""
    folder = tmp_path_factory.mktemp("served")
    model = make_model("llama", folder / "model")
    steerings = {
        "vote": make_steering(shape(model), gate="vote", size=2.0, seed=3),
        "zero": make_steering(shape(model), kind="zero", gate="none", seed=6),
    }
    options = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "128", "--max-num-seqs", "8"]
    options += ["--trace-file", str(folder / "traces.jsonl")]
    for name, steering in steerings.items():
        options += ["--steering", f"{name}={steering.save(folder / name)}"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "radiant_lens.cli", "serve", str(folder / "model"), *options]
    log = (folder / "log").open("w+")
    process = subprocess.Popen(
        [*command, "--served-model-name", "mine", "--host", "127.0.0.1", "--port", str(port)],
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
        start_new_session=True,
    )
    try:
        client = Client(port)
        for _ in range(600):
            if process.poll() is not None:
                pytest.fail((folder / "log").read_text()[-3000:])
            try:
                client.get("/health")
                break
            except OSError:
                time.sleep(1)
        client.traces = folder / "traces.jsonl"
        yield client, model, steerings
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def test_requests_choose_their_steering(served):
    client, model, steerings = served
    rows = prompts(6)
    choices = [("vote", 1.0), ("zero", 1.0), None] * 2
    extra = [c and {"steering": c[0], "strength": c[1]} for c in choices]
    answers = [client.answer(row, e) for row, e in zip(rows, extra)]
    assert answers == expected_answers(model, steerings, rows, choices, N_NEW)
    assert answers != [client.answer(row) for row in rows]


def test_models_list_the_steerings(served):
    client, *_ = served
    cards = {card["id"]: card["parent"] for card in json.loads(client.get("/v1/models"))["data"]}
    assert cards == {"mine": None, "vote": "mine", "zero": "mine"}


@pytest.mark.parametrize(
    ("extra", "options", "message"),
    [
        ({"steering": "zoro"}, {}, "'zoro' is not a known steering: did you mean 'zero'?"),
        ({"steering": "zero", "strength": "NaN"}, {}, "`strength` must lie between -1e+06 and 1e+06; got 'NaN'."),
        ({"steering": "zero", "strength": float("nan")}, {}, "`strength` must lie between -1e+06 and 1e+06; got nan."),
        ({"strength": 2}, {}, "`strength` needs a `steering`"),
        ({"steering": "zero"}, {"use_beam_search": True, "n": 2}, "Beam search starts every step as a new prompt"),
    ],
)
def test_wrong_requests_get_a_sentence_and_the_server_goes_on(served, extra, options, message):
    client, *_ = served
    status, body = client.complete([5, 6, 7], extra, **options)
    assert (status, message in body["error"]["message"]) == (400, True), body
    assert len(client.answer([5, 6, 7], {"steering": "zero"})) == N_NEW


def test_a_request_gets_its_trace(served):
    """The line of a request begins with the id of its response, and has its edits; others have no line."""
    client, model, steerings = served
    row = prompts(6)[4]
    status, body = client.complete(row, {"steering": "vote", "strength": 0.5, "trace": True})
    assert status == 200, body
    _, untraced = client.complete(row, {"steering": "vote", "strength": 0.5, "trace": False})
    # A trace is written as the engine hears, with the next request, that its own has ended.
    client.answer([5, 6, 7])
    lines = [json.loads(line) for line in client.traces.read_text().splitlines()]
    (line,) = [line for line in lines if line["request"].startswith(body["id"])]
    assert not [line for line in lines if line["request"].startswith(untraced["id"])]
    assert (line["steering"], line["strength"], line["process"]) == ("vote", 0.5, 0)
    assert [token["position"] for token in line["tokens"]] == list(range(len(row) - 1, len(row) - 1 + N_NEW))
    ids = torch.tensor([row])
    with rl.steer(model, steerings["vote"], strength=0.5, trace=True, allow_mismatch=True) as trace, torch.no_grad():
        model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, eos_token_id=None, min_new_tokens=N_NEW,
            max_new_tokens=N_NEW,
        )  # fmt: skip
    table = trace.to_dataframe()
    edits = [edits for _, edits in table[table["gated"]].groupby(["call", "position"], sort=False)]
    expected = [{str(k): v.tolist() for k, v in e.groupby("layer")["head"]} for e in edits]
    assert [token["edited"] for token in line["tokens"] if token["edited"]] == expected != []
    assert all(set(token["votes"]) == {"0", "1"} for token in line["tokens"])


def test_metrics_count_what_was_edited(served):
    client, *_ = served

    def counts(name: str) -> dict[str, float]:
        lines = re.findall(rf'^radiant_lens:{name}_total{{steering="(\w+)"}} (\S+)$', client.get("/metrics"), re.M)
        return {steering: float(value) for steering, value in lines}

    client.answer([5, 6, 7], {"steering": "zero"})
    client.answer([5, 6, 7], {"steering": "vote"})
    # The counters are read once a second.
    time.sleep(1.1)
    client.answer([5, 6, 7])
    edited, steered = counts("edited_activations"), counts("steered_activations")
    assert edited["zero"] == steered["zero"] > 0
    assert 0 < edited["vote"] < steered["vote"]
