"""Engines of vLLM in this process, for tiny random models; without vLLM, the tests that need it are skipped."""

from __future__ import annotations

import os
import warnings
from importlib.util import find_spec

import pytest

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
# In this process, so that tests reach the modules.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


@pytest.fixture(scope="session")
def vllm():
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed here: it has an environment of its own, made by .ci/serving")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import vllm
        from vllm import LLM  # noqa: F401

        return vllm
