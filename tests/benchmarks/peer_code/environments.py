"""Environments of the libraries whose requirements conflict with ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TORCH = "torch==2.13.0"


def make(folder: Path, packages: tuple[str, ...]) -> str:
    """Install packages into an environment, unless they are there; returns its Python.

    Raises:
        RuntimeError: it cannot be installed; with the installer's error.
    """
    python = folder / "bin" / "python"
    done = folder / "installed"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        # PyTorch first, so that no package decides its version. Compiled, whatever the surroundings say: else a library
        # compiles its modules at every start that is measured.
        command = [str(python), "-m", "pip", "install", "--quiet", "--compile", TORCH, *packages]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
            raise RuntimeError(f"did not install: {errors[-1] if errors else result.stderr[-200:]}")
        done.touch()
    return str(python)
