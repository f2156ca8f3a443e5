"""Minutes of mixed requests to `radiant-lens serve` on the loopback address, and the memory of its processes.

Four clients ask at once: steered, at several strengths, with a trace, and not steered; and wrong requests, which must
be answered with status 400: an unknown steering, a strength of NaN, a strength alone, and beam search with a steering.
Without steerings it is vLLM's own server, without the plugin, and all requests are its own: what grows there is not
ours. Memory is what each process of the server has to itself (anonymous pages), read every ten seconds: their share of
the libraries, which they map from files, changes as other processes come and go.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

N_CLIENTS = 4
SECONDS_BETWEEN_READINGS = 10
KINDS = ("steered", "not steered", "traced", "unknown steering", "strength NaN", "strength alone", "beams")
WEIGHTS = (6, 4, 3, 1, 1, 1, 1)


class Server:
    """The server in processes of its own, which end with the block; without steerings it has no plugin."""

    def __init__(self, model: str, steerings: Mapping[str, Path], folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        options = ["--dtype", "bfloat16", "--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "8"]
        # A small cache is soon full: afterwards its memory cannot grow.
        options += ["--kv-cache-memory-bytes", str(2**26), "--served-model-name", "mine", "--host", "127.0.0.1"]
        options += ["--port", str(self._port)]
        environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
        environment.pop("VLLM_CPU_KVCACHE_SPACE", None)
        if steerings:
            command = ["radiant_lens.cli", "serve", model, "--trace-file", str(folder / "traces.jsonl")]
            options += [word for name, path in steerings.items() for word in ("--steering", f"{name}={path}")]
        else:
            command = ["vllm.entrypoints.openai.api_server", "--model", model]
            environment["VLLM_PLUGINS"] = ""
        self._log = (folder / "log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", *command, *options],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )

    def __enter__(self) -> Server:
        for _ in range(900):
            if self._process.poll() is not None:
                break
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health", timeout=10).close()
                return self
            except OSError:
                time.sleep(1)
        self.__exit__()
        self._log.seek(0)
        raise RuntimeError(f"The server has not started: {self._log.read()[-3000:]}")

    def __exit__(self, *error: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait(120)

    def status(self, body: Mapping[str, Any]) -> int:
        """Status of the answer to a completion; 0 without an answer."""
        address = f"http://127.0.0.1:{self._port}/v1/completions"
        data = json.dumps({"model": "mine", "temperature": 0, **body}).encode()
        request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                answer.read()
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def memory(self) -> dict[str, float]:
        """Anonymous memory of its processes, in MB, by the name of the program."""
        sums: Counter[str] = Counter()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if os.getsid(int(folder.name)) != self._process.pid:
                    continue
                name = (folder / "comm").read_text().strip()
                lines = (folder / "smaps_rollup").read_text().splitlines()
            except (OSError, ProcessLookupError):
                continue
            sums[name] += sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))
        return {name: kilobytes / 1024 for name, kilobytes in sums.items()}


def make_request(kind: str, steerings: Sequence[str], draw: random.Random) -> dict[str, Any]:
    """A completion of this kind, with a prompt of 1 to 120 tokens and an answer of 1 to 32."""
    prompt = [draw.randrange(100, 40_000) for _ in range(draw.randint(1, 120))]
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": draw.randint(1, 32)}
    if kind == "not steered":
        return body
    name, strength = draw.choice(steerings), draw.choice([0.5, 1.0, 1.5, 2.0])
    extra: dict[str, dict[str, Any]] = {
        "steered": {"steering": name, "strength": strength},
        "traced": {"steering": name, "strength": strength, "trace": True},
        "unknown steering": {"steering": f"{name}-not", "strength": strength},
        "strength NaN": {"steering": name, "strength": "NaN"},
        "strength alone": {"strength": strength},
        "beams": {"steering": name},
    }
    body["vllm_xargs"] = extra[kind]
    if kind == "beams":
        body.update(use_beam_search=True, n=2)
    return body


class Reading(NamedTuple):
    """Memory of the server's processes at one moment.

    Attributes:
        minute: since the beginning.
        answers: given so far.
        megabytes: by process.
    """

    minute: float
    answers: int
    megabytes: dict[str, float]


def soak(model: str, steerings: Mapping[str, Path], minutes: float) -> None:
    """Print memory over time, its growth after the first quarter, and the statuses of each kind of request."""
    # A run that is terminated ends its server, too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    names, statuses, lock = list(steerings), Counter[tuple[str, int]](), threading.Lock()
    kinds = KINDS if steerings else ("not steered",)
    with tempfile.TemporaryDirectory() as place, Server(model, steerings, Path(place)) as server:
        begin = time.monotonic()
        end = begin + 60 * minutes

        def ask(client: int) -> None:
            draw = random.Random(client)
            while time.monotonic() < end:
                (kind,) = draw.choices(kinds, WEIGHTS[: len(kinds)])
                status = server.status(make_request(kind, names, draw))
                with lock:
                    statuses[kind, status] += 1

        clients = [threading.Thread(target=ask, args=(i,), daemon=True) for i in range(N_CLIENTS)]
        for client in clients:
            client.start()
        readings: list[Reading] = []
        while time.monotonic() < end:
            readings.append(Reading((time.monotonic() - begin) / 60, sum(statuses.values()), server.memory()))
            if len(readings) % 6 == 1:
                sizes = ", ".join(f"{name} {size:.1f} MB" for name, size in sorted(readings[-1].megabytes.items()))
                print(f"{readings[-1].minute:.1f} min, {readings[-1].answers} answers: {sizes}", flush=True)
            time.sleep(SECONDS_BETWEEN_READINGS)
        for client in clients:
            client.join(660)
        traces = Path(place) / "traces.jsonl"
        lines = traces.read_text().splitlines() if traces.exists() else []
        traced = {json.loads(line)["request"] for line in lines}
        after = server.status({"prompt": [5, 6, 7], "max_tokens": 1})
    print(f"{len(traced)} traces; an answer after the end has status {after}")
    print("| request | status | answers |\n|---|---|---|")
    for (kind, status), n in sorted(statuses.items()):
        print(f"| {kind} | {status} | {n} |")
    print_growth([reading for reading in readings if reading.minute > minutes / 4])


def print_growth(readings: Sequence[Reading]) -> None:
    """Print by how much the memory of processes of each name grows with the answers, and with the minutes."""
    answers, minutes = [r.answers for r in readings], [r.minute for r in readings]
    if len(set(answers)) < 2:
        print("No growth can be told: too few readings, or no answer between them.")
        return
    print("| process | first, MB | last, MB | kB an answer | MB a minute |\n|---|---|---|---|---|")
    for name in sorted({name for reading in readings for name in reading.megabytes}):
        sizes = [reading.megabytes.get(name, 0.0) for reading in readings]
        by_answer, by_minute = (statistics.linear_regression(x, sizes).slope for x in (answers, minutes))
        print(f"| {name} | {sizes[0]:.1f} | {sizes[-1]:.1f} | {1024 * by_answer:.2f} | {by_minute:.3f} |")
