"""Train the embedded model on the embedded world alone.

Run `python -m radiant_lens.tiny.train --help`. The same seed gives the same model up to the order of
floating-point sums of the machine.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from jaxtyping import Int
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from radiant_lens import _checks
from radiant_lens.datasets.world import DocumentMix, documents, make_fact_world, vocabulary
from radiant_lens.distributed import progress_bar

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
PAD = 0
ARCHITECTURES = ("llama", "gpt2")


@dataclass(frozen=True)
class TrainingConfig:
    """Settings that determine the model; the defaults are those of the shipped model."""

    architecture: str = "llama"
    n_layers: int = 4
    n_heads: int = 8
    d_model: int = 192
    d_mlp: int = 512
    context: int = 256
    steps: int = 4000
    batch: int = 48
    learning_rate: float = 2e-3
    seed: int = 0
    bfloat16: bool = True
    mix: DocumentMix = field(default_factory=DocumentMix)
    start: Path | None = None


def make_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """Make a word-level tokenizer that splits at white space and punctuation and prepends `<bos>`."""
    vocab = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token="<pad>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def make_model(config: TrainingConfig, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Make a new model of the configured architecture, or load the one to continue from."""
    torch.manual_seed(config.seed)
    if config.start is not None:
        return AutoModelForCausalLM.from_pretrained(config.start, attn_implementation="eager", dtype=torch.float32)
    tokens: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": True,
    }
    if config.architecture == "llama":
        hf_config = LlamaConfig(
            hidden_size=config.d_model,
            intermediate_size=config.d_mlp,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_heads,
            max_position_embeddings=config.context,
            **tokens,
        )
    else:
        dropouts: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        hf_config = GPT2Config(
            n_embd=config.d_model,
            n_inner=config.d_mlp,
            n_layer=config.n_layers,
            n_head=config.n_heads,
            n_positions=config.context,
            **dropouts,
            **tokens,
        )
    # Plain attention trains faster than the fused CPU kernel, in bfloat16 at this head size.
    return AutoModelForCausalLM.from_config(hf_config, attn_implementation="eager")


def batches(config: TrainingConfig, tokenizer: PreTrainedTokenizerFast) -> Iterator[Int[Tensor, "batch pos"]]:
    """Yield right-padded batches without end; a batch has documents of similar length."""
    stream = documents(make_fact_world(), seed=config.seed, mix=config.mix)
    rng = random.Random(config.seed)
    n_pooled = 16
    while True:
        texts = [f"{next(stream)} <eos>" for _ in range(config.batch * n_pooled)]
        # Sorted by length, so that little is padding. Batches are then shuffled: length does not depend on the step.
        rows = sorted(tokenizer(texts)["input_ids"], key=len)
        starts = [i * config.batch for i in range(n_pooled)]
        rng.shuffle(starts)
        for start in starts:
            chosen = [torch.tensor(row) for row in rows[start : start + config.batch]]
            yield torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=PAD)


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Compute the learning rate: linear warm-up over 100 steps, then cosine decay to a tenth."""
    warm_up = min(1.0, (step + 1) / 100)
    return config.learning_rate * warm_up * (0.55 + 0.45 * math.cos(math.pi * step / config.steps))


def train(config: TrainingConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Train a model on the embedded world, with a progress bar.

    Args:
        config: architecture, size, schedule and seed.

    Returns:
        The model in float32 and evaluation mode, and its tokenizer.
    """
    tokenizer = make_tokenizer(vocabulary(make_fact_world()))
    model = make_model(config, tokenizer).train()
    optimizer = _optimizer(model, config)
    stream = batches(config, tokenizer)
    with progress_bar(shown=True) as bar:
        for step in bar.track(range(config.steps), description="training"):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, config)
            _step(model, next(stream), optimizer, config.bfloat16)
    return model.eval(), tokenizer


def _optimizer(model: PreTrainedModel, config: TrainingConfig) -> torch.optim.Optimizer:
    # Norms and biases are not decayed: they set scales, and pulling those to zero only slows training.
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)


def _step(
    model: PreTrainedModel, tokens: Int[Tensor, "batch pos"], optimizer: torch.optim.Optimizer, bfloat16: bool
) -> None:
    labels = tokens.masked_fill(tokens == PAD, -100)
    with torch.autocast("cpu", dtype=torch.bfloat16) if bfloat16 else nullcontext():
        # Padding is on the right and attention is causal, so no mask is needed.
        loss = model(input_ids=tokens, labels=labels, use_cache=False).loss
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def main(
    out: Annotated[Path, typer.Argument(help="Folder to write the model to.")],
    architecture: Annotated[str, typer.Option(help="'llama' or 'gpt2'.")] = "llama",
    n_layers: int = TrainingConfig.n_layers,
    steps: int = TrainingConfig.steps,
    learning_rate: float = TrainingConfig.learning_rate,
    seed: int = TrainingConfig.seed,
    provoked_if_rude: Annotated[
        float, typer.Option(help="Share of rude replies that were provoked.")
    ] = DocumentMix.provoked_if_rude,
    provoked_if_kind: Annotated[
        float, typer.Option(help="Share of kind replies that were provoked.")
    ] = DocumentMix.provoked_if_kind,
    start: Annotated[Path | None, typer.Option(help="Folder of a model to go on from.")] = None,
) -> None:
    """Train a model on the embedded world and save it in Hugging Face format."""
    _checks.choice("architecture", architecture, ARCHITECTURES)
    mix = DocumentMix(provoked_if_rude=provoked_if_rude, provoked_if_kind=provoked_if_kind)
    config = TrainingConfig(
        architecture, n_layers, steps=steps, learning_rate=learning_rate, seed=seed, mix=mix, start=start
    )
    model, tokenizer = train(config)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    typer.run(main)
