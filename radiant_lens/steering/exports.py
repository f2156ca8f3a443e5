"""Steerings as weights, adapters and control vectors, for runtimes that have no hooks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jaxtyping import Float, Int
from torch import Tensor, nn

from radiant_lens.steering.artefact import SteeringParts
from radiant_lens.steering.control_vector import ControlVector, save_control_vector
from radiant_lens.steering.editor import LayerEdit
from radiant_lens.steering.folding import fold
from radiant_lens.steering.lora import save_lora


class WeightExports(SteeringParts):
    """Base of `Steering`: what is written into a model, or into a file for another runtime."""

    def displacing(self) -> Callable[[Float[Tensor, "*batch head d_head"], int], LayerEdit]:
        """The edits of a pass, one layer after the other; `Steering` computes them."""
        raise NotImplementedError

    def fold_into(self, model: nn.Module, *, savable: bool = True) -> None:
        """Change the weights of a plain transformers model so that it makes these edits itself, at every position.

        The folded model equals `steer(model, steering, start=0)`. It does not equal `steer` without `start`, which
        leaves the prompt alone. Afterwards `model.save_pretrained(...)` writes an ordinary Hugging Face model. Where
        the output projection has no bias and needs one, the setting of the configuration for it is switched on.

        Args:
            model: changed in place; after a refusal it is as it was.
            savable: refuse architectures without such a setting, since a saved copy would lose the bias.

        Raises:
            InvalidArgumentError: edits with a gate, a trust region, evidence or resampling; a bridge; a model with an
                adapter; an output projection that is not exactly a `torch.nn.Linear` or a transformers `Conv1D` with
                plain weights in memory; weights that would overflow; or a bias that cannot be saved.
            UnknownNameError: an architecture whose module paths are not known.
            ModelMismatchError: a model of another shape.
        """
        fold(self, model, savable=savable)

    def to_lora(self, folder: str | Path, model: nn.Module) -> Path:
        """Write these edits as a PEFT LoRA of the model's attention output projections; returns the folder.

        The adapter equals `fold_into` up to rounding, constants included (`lora_bias`), and leaves the model as it is.
        As there, it acts at every position. Runtimes that do not read `lora_bias` (vLLM among them) have the linear
        part alone, and PEFT cannot merge it into projections without a bias: fold the steering for these.

        Args:
            folder: to write; an adapter that is there already is replaced.
            model: a plain transformers model, whose weights the adapter is a product of.

        Raises:
            InvalidArgumentError, UnknownNameError, ModelMismatchError: as `fold_into`.
            OutputError: a folder that is no adapter, or that cannot be written.
        """
        return save_lora(self, folder, model)

    def to_gguf_control_vector(
        self, file: str | Path, model: nn.Module, tokens: Int[Tensor, "row pos"]
    ) -> ControlVector:
        """Write these edits as a control vector of llama.cpp; returns the path, and the KL to the edits themselves.

        An approximation. A control vector is one constant for each layer: it has no gate, acts at every position and
        is added after the layer, where the layer's own feed-forward part does not see it (that of layer 0 is added
        after layer 1, the first that llama.cpp has). Here it is the mean of what the edits write at these tokens.

        Args:
            file: GGUF file to write; one that is there already is replaced.
            model: a plain transformers model.
            tokens: of texts that the vector should hold for.

        Raises:
            MissingPackageError: the package `gguf` is not installed.
            InvalidArgumentError: no tokens, or a model of another shape.
            UnknownNameError: an architecture whose module paths are not known.
            NothingToEditError: the steering edits none of the tokens.
            OutputError: the file cannot be written.
        """
        n_heads, d_head = self.scores.weights.shape[1:]
        return save_control_vector(self.displacing(), self.hooked_layers, (n_heads, d_head), file, model, tokens)
