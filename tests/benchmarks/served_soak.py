"""Minutes of mixed requests to `radiant-lens serve` on the loopback address, and the memory of its processes.

Four clients ask at once: steered, at several strengths, with a trace, and not steered; and wrong requests, which must
be answered with status 400: an unknown steering, a strength of NaN, a strength alone, and beam search with a steering.
Memory is what the processes of the server have to themselves (anonymous pages), read every ten seconds: their share of
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
from typing import Any

N_CLIENTS = 4
SECONDS_BETWEEN_READINGS = 10
KINDS = ("steered", "not steered", "traced", "unknown steering", "strength NaN", "strength alone", "beams")
WEIGHTS = (6, 4, 3, 1, 1, 1, 1)


class Server:
    """The server in processes of its own, which end with the block."""

    def __init__(self, model: str, steerings: Mapping[str, Path], folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        options = ["--dtype", "bfloat16", "--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "8"]
        # A small cache is soon full: afterwards its memory cannot grow.
        options += ["--kv-cache-memory-bytes", str(2**26), "--served-model-name", "mine", "--host", "127.0.0.1"]
        options += ["--port", str(self._port), "--trace-file", str(folder / "traces.jsonl")]
        for name, path in steerings.items():
            options += ["--steering", f"{name}={path}"]
        environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
        environment.pop("VLLM_CPU_KVCACHE_SPACE", None)
        self._log = (folder / "log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "radiant_lens.cli", "serve", model, *options],
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

    def memory(self) -> float:
        """Anonymous memory of all its processes, in MB."""
        total = 0
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if os.getsid(int(folder.name)) != self._process.pid:
                    continue
                lines = (folder / "smaps_rollup").read_text().splitlines()
            except (OSError, ProcessLookupError):
                continue
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))
        return total / 1024


def make_request(kind: str, steerings: Sequence[str], draw: random.Random) -> dict[str, Any]:
    """A completion of this kind, with a prompt of 1 to 120 tokens and an answer of 1 to 32."""
    prompt = [draw.randrange(100, 40_000) for _ in range(draw.randint(1, 120))]
    name, strength = draw.choice(steerings), draw.choice([0.5, 1.0, 1.5, 2.0])
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": draw.randint(1, 32)}
    extra: dict[str, dict[str, Any]] = {
        "steered": {"steering": name, "strength": strength},
        "traced": {"steering": name, "strength": strength, "trace": True},
        "unknown steering": {"steering": f"{name}-not", "strength": strength},
        "strength NaN": {"steering": name, "strength": "NaN"},
        "strength alone": {"strength": strength},
        "beams": {"steering": name},
    }
    if kind in extra:
        body["vllm_xargs"] = extra[kind]
    if kind == "beams":
        body.update(use_beam_search=True, n=2)
    return body


def soak(model: str, steerings: Mapping[str, Path], minutes: float) -> None:
    """Print memory over time, its slope after the first quarter, and the statuses of each kind of request."""
    names, statuses, lock = list(steerings), Counter[tuple[str, int]](), threading.Lock()
    with tempfile.TemporaryDirectory() as place, Server(model, steerings, Path(place)) as server:
        begin = time.monotonic()
        end = begin + 60 * minutes

        def ask(client: int) -> None:
            draw = random.Random(client)
            while time.monotonic() < end:
                (kind,) = draw.choices(KINDS, WEIGHTS)
                status = server.status(make_request(kind, names, draw))
                with lock:
                    statuses[kind, status] += 1

        clients = [threading.Thread(target=ask, args=(i,), daemon=True) for i in range(N_CLIENTS)]
        for client in clients:
            client.start()
        readings: list[tuple[float, float]] = []
        while time.monotonic() < end:
            readings.append(((time.monotonic() - begin) / 60, server.memory()))
            if len(readings) % 6 == 1:
                total = sum(statuses.values())
                print(f"{readings[-1][0]:.1f} min: {readings[-1][1]:.1f} MB, {total} answers", flush=True)
            time.sleep(SECONDS_BETWEEN_READINGS)
        for client in clients:
            client.join(660)
        lines = (Path(place) / "traces.jsonl").read_text().splitlines()
        traced = {json.loads(line)["request"] for line in lines}
        after = server.status({"prompt": [5, 6, 7], "max_tokens": 1})
    later = [reading for reading in readings if reading[0] > minutes / 4]
    slope, _ = statistics.linear_regression(*zip(*later))
    print(
        f"memory after a quarter {later[0][1]:.1f} MB, at the end {later[-1][1]:.1f} MB, largest "
        f"{max(mb for _, mb in readings):.1f} MB; slope of the last three quarters {slope:.3f} MB a minute"
    )
    print(f"{len(traced)} traces; an answer after the end has status {after}")
    print("| request | status | answers |\n|---|---|---|")
    for (kind, status), n in sorted(statuses.items()):
        print(f"| {kind} | {status} | {n} |")
