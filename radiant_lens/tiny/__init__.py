"""The embedded model: weights, tokenizer and card that ship with the package."""

from pathlib import Path


def model_folder() -> Path:
    """Folder of the embedded model in Hugging Face format."""
    return Path(__file__).parent / "model"
