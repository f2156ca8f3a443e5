"""Memory of passes of many lengths: what is kept for each of them is bounded, unless the user says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from radiant_lens.cli import options
from radiant_lens.cli.kernels import CACHES, N_KERNELS, bound_kernels

GROWTH = """
import gc, torch
from radiant_lens.cli.kernels import bound_kernels
if {bounded}:
    bound_kernels(4)

def megabytes():
    gc.collect()
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Anonymous:")) / 1024

torch.set_num_threads(1)
weight = torch.randn(512, 512, dtype=torch.bfloat16)
for n in range(1, 11):
    torch.randn(n, 512, dtype=torch.bfloat16) @ weight
before = megabytes()
for n in range(11, 311):
    torch.randn(n, 512, dtype=torch.bfloat16) @ weight
print(megabytes() - before)
"""


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize(("users", "used"), [(None, str(N_KERNELS)), ("1024", "1024")])
def test_kept_kernels_are_few_unless_the_user_says_otherwise(name, users, used, monkeypatch):
    for cache in CACHES:
        # Set first, so that all are taken back at the end.
        monkeypatch.setenv(cache, "0")
        monkeypatch.delenv(cache)
    if users is not None:
        monkeypatch.setenv(name, users)
    bound_kernels()
    assert os.environ[name] == used
    assert {os.environ[cache] for cache in CACHES if cache != name} == {str(N_KERNELS)}


def test_every_command_that_loads_a_model_bounds_them(monkeypatch):
    for cache in CACHES:
        monkeypatch.setenv(cache, "0")
        monkeypatch.delenv(cache)
    options.Loading().load("tiny")
    assert {os.environ[cache] for cache in CACHES} == {str(N_KERNELS)}


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="memory is read from Linux")
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="without oneDNN nothing is kept")
def test_memory_of_passes_of_many_lengths_is_flat():
    environment = {name: value for name, value in os.environ.items() if name not in CACHES}

    def grown(bounded: bool) -> float:
        command = [sys.executable, "-c", GROWTH.format(bounded=bounded)]
        return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    unbounded = grown(False)
    if unbounded < 10:
        pytest.skip(f"this processor's kernels take no memory ({unbounded:.1f} MB)")
    assert grown(True) < unbounded / 5
