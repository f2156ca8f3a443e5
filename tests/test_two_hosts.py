"""Two machines collect as one: network namespaces joined by a cable stand for the machines."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from launches import TORCHRUN, Launch, assert_all_once, write_data

import radiant_lens as rl


@pytest.fixture
def launch(tmp_path):
    return Launch(tmp_path)


@pytest.fixture
def data(tmp_path, facts):
    return write_data(facts, tmp_path / "few.jsonl")


def namespaces_can_be_made() -> bool:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    added = subprocess.run(["ip", "netns", "add", "radiant-probe"], capture_output=True, check=False).returncode == 0
    subprocess.run(["ip", "netns", "del", "radiant-probe"], capture_output=True, check=False)
    return added


@contextmanager
def two_hosts() -> Iterator[list[str]]:
    """Two network namespaces joined by a cable, and nothing else."""
    tag = f"rl{os.getpid()}"
    hosts = [f"{tag}-a", f"{tag}-b"]
    run = lambda command: subprocess.run(command.split(), check=True, capture_output=True)  # noqa: E731
    try:
        for host in hosts:
            run(f"ip netns add {host}")
            run(f"ip -n {host} link set lo up")
        run(f"ip -n {hosts[0]} link add eth0 type veth peer name eth0 netns {hosts[1]}")
        for i, host in enumerate(hosts):
            run(f"ip -n {host} addr add 10.77.0.{i + 1}/24 dev eth0")
            run(f"ip -n {host} link set eth0 up")
        yield hosts
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "del", host], capture_output=True, check=False)


@pytest.mark.slow
@pytest.mark.skipif(not namespaces_can_be_made(), reason="needs root and `ip netns` (iproute2)")
def test_two_hosts_collect_as_one(model, data, tmp_path, launch):
    with two_hosts() as hosts:
        processes = []
        for i, host in enumerate(hosts):
            place = ["--nnodes", "2", "--node-rank", str(i), "--nproc-per-node", "1", "--master-addr", "10.77.0.1"]
            launcher = ["ip", "netns", "exec", host, *TORCHRUN, *place, "--master-port", "29511"]
            command = launch.command(
                *("collect", "--data", data, "--max-tokens", 400, "--store", tmp_path / "store", "--json"),
                launcher=launcher,
            )
            environment = {**launch.environment("live"), "GLOO_SOCKET_IFNAME": "eth0"}
            processes.append(
                subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            )
        try:
            ended = [process.communicate(timeout=300) for process in processes]
        finally:
            for process in processes:
                process.kill()
    assert [process.returncode for process in processes] == [0, 0], ended
    assert_all_once(launch.done(), each=2)
    expected = rl.collect(model, rl.load_dataset(data), max_tokens=400)
    torch.testing.assert_close(rl.HeadCache.load(tmp_path / "store").z, expected.z, rtol=1e-4, atol=1e-5)
    assert json.loads(ended[0][0])["examples"] == len(expected) and ended[1][0] == ""
