"""The documentation, built once for all tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]
SECONDS = 180
# Built in CI, too: https://www.mkdocs.org/user-guide/configuration/#strict
COMMAND = (sys.executable, "-m", "mkdocs", "build", "--strict", "-f", ".docs/mkdocs.yml", "-d")


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The built site, one for all processes of a run."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "site"
    with FileLock(shared / "site.lock"):
        if not (folder / "index.html").exists():
            # A proxy that nobody answers: whatever asks for a network fails.
            dead = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
            began = os.times().children_user
            run = subprocess.run(
                [*COMMAND, str(folder)], cwd=ROOT, capture_output=True, text=True, env={**os.environ, **dead}
            )
            assert run.returncode == 0, run.stderr
            assert os.times().children_user - began < SECONDS
    return folder
