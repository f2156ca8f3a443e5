"""Fixtures: the embedded model, an experiment on it, a foreign model on disk, and made-up activations."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import shape_checker
import torch
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Processes share the cores; threads of each would only wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
shape_checker.install("radiant_lens")
# The same examples in every run; `--hypothesis-profile explore` looks for new ones.
settings.register_profile("same", derandomize=True, database=None, deadline=None)
settings.register_profile("explore", deadline=None, max_examples=500)
settings.load_profile("same")

from transformer_lens.model_bridge import TransformerBridge

import radiant_lens as rl
from radiant_lens import studies
from radiant_lens.cli import main
from radiant_lens.datasets.world import make_fact_world, vocabulary
from radiant_lens.tiny.train import TrainingConfig, make_model, make_tokenizer

# Files of tests that take long: first, so that no process is left alone with one of them at the end.
_LONG = (
    *("test_real_model.py", "test_tutorials.py", "test_code_blocks.py", "test_distributed.py", "test_faults.py"),
    "test_processes.py",
)


_COLLECTED = pytest.StashKey[list[str]]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    config.stash[_COLLECTED] = [item.nodeid for item in items]
    items.sort(key=lambda item: item.path.name not in _LONG)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Each process has a share of the tests, and who is done takes some of another's."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.fixture(scope="session")
def model():
    bridge = rl.load_model("tiny", device="cpu")
    # It puts hooks of its own on in its first pass; tests count hooks.
    with torch.no_grad():
        bridge(torch.tensor([[7, 8]]))
    return bridge


@pytest.fixture(scope="session")
def every_test(pytestconfig) -> list[str]:
    """Names of all tests that were collected, the slow ones among them."""
    return pytestconfig.stash[_COLLECTED]


@pytest.fixture(scope="session")
def facts():
    return rl.load_dataset("tiny-facts")


# Settings that were chosen on tiny-facts: fewer tokens are edited there than at the defaults, for as much truth.
TUNED = rl.RadiantPolicy(gamma=0.005, gate="vote")


@pytest.fixture(scope="session")
def tuned():
    return TUNED


@pytest.fixture(scope="session")
def experiment(model, facts):
    """All of tiny-facts, split once; shared by every test that needs real activations."""
    return studies.prepare(model, facts, detector=rl.RiskAwareDetector(fnr_weight=0.65, vote_rule="risk"))


@pytest.fixture(scope="session")
def recipe(experiment, tuned):
    return studies.effective(experiment, tuned)


@pytest.fixture(scope="session")
def steering(recipe):
    return recipe.steering


@pytest.fixture(scope="session")
def foreign_folder(tmp_path_factory) -> Path:
    """A GPT-2 architecture with random weights, as a user would have it on disk."""
    tokenizer = make_tokenizer(vocabulary(make_fact_world()))
    config = TrainingConfig(architecture="gpt2", n_layers=2, n_heads=4, d_model=32, d_mlp=64, seed=3)
    folder = tmp_path_factory.mktemp("models") / "my-gpt2"
    make_model(config, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_cache(
    n_groups: int = 200, *, n_layers: int = 2, n_heads: int = 3, d_head: int = 4, shift: float = 1.5, seed: int = 0
) -> rl.HeadCache:
    """Gaussian activations of two classes; head `(layer, head)` is shifted by `shift * head` along its first axis."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(2 * n_groups) % 2
    z = torch.randn(2 * n_groups, n_layers, n_heads, d_head, generator=generator)
    z[..., 0] += shift * labels[:, None, None] * torch.arange(n_heads)
    names = [f"{seed}-{i // 2}" for i in range(2 * n_groups)]
    index = torch.arange(2 * n_groups)
    return rl.HeadCache(
        z, labels, index, torch.zeros_like(index), tuple(f"text {i}" for i in index.tolist()), tuple(names)
    )


@pytest.fixture(scope="session")
def gaussian_cache():
    return make_cache


@pytest.fixture
def command_line(monkeypatch, capsys):
    """Run a command in this process; returns exit status, standard output and standard error."""

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["radiant-lens", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return command


@contextmanager
def files_no_larger_than(n_bytes: int) -> Generator[None]:
    """The system itself refuses to write more, in the midst of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def logits_set(model: TransformerBridge, tokens: int | slice, value: float) -> Generator[None]:
    """The logits of some tokens are `value` at every position."""

    def spoil(module: object, args: object, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[..., tokens] = value
        return logits

    handle = model.original_model.get_output_embeddings().register_forward_hook(spoil)
    try:
        yield
    finally:
        handle.remove()


@pytest.fixture(scope="module")
def browser():
    """Chromium without a network of its own; a test without it is skipped and says so."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", "--hide-scrollbars"]
    system = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with playwright.sync_playwright() as driver:
        try:
            chromium = driver.chromium.launch(executable_path=system, args=flags)
        except playwright.Error as error:
            pytest.skip(f"no browser: apt-get install chromium, or playwright install chromium ({error.message[:80]})")
        yield chromium
        chromium.close()
