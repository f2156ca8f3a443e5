"""The texts, prompts, directions and steerings that all libraries are given."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import radiant_lens as rl
from radiant_lens.models.sources import find_source
from radiant_lens.models.tokens import answer_start_position, batch_rows, encode

# The rule for batches that `collect` has on a CPU.
MAX_TOKENS = 1024
# So strong that most new tokens change: an edit that did not happen would be seen.
STRENGTH = 20.0


def readable_folder(name: str, folder: Path) -> str:
    """A copy of a model's folder whose configuration transformers 4 reads as transformers 5 does.

    Version 5 writes the base of rotary embeddings and the tokenizer's class in a way that version 4 does not know: it
    would take another base, and run another model.
    """
    source = Path(find_source(name).path)
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    config["rope_theta"] = config.get("rope_parameters", {}).get("rope_theta", config.get("rope_theta", 10000.0))
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return str(folder)


def chosen_statements(model: Any, data: rl.Dataset, n_texts: int) -> list[rl.Statement]:
    """One statement for each of `n_texts` groups, so that no two share a prompt, by rising number of tokens."""
    order = list(data.statements)
    random.Random(0).shuffle(order)
    first = {statement.group: statement for statement in reversed(order)}
    chosen = list(first.values())[:n_texts]
    lengths = [len(e.ids) for e in encode(model, chosen)]
    return [chosen[i] for i in sorted(range(len(chosen)), key=lambda i: lengths[i])]


def equal_prompts(model: Any, data: rl.Dataset, n_prompts: int) -> list[str]:
    """Prompts of the most frequent length, so that none is padded."""
    by_length: dict[int, list[str]] = {}
    for prompt, row in zip(data.prompts, encode(model, data.prompts)):
        by_length.setdefault(len(row.ids), []).append(prompt.text)
    return max(by_length.values(), key=len)[:n_prompts]


def directions(n_layers: int, d_model: int, folder: Path) -> dict[str, str]:
    """Random additions to the residual stream, after one middle layer and after all."""
    generator = torch.Generator().manual_seed(0)
    files = {}
    for name, layers, scale in (("layer", [n_layers // 2], 2.0), ("layers", range(n_layers), 0.3)):
        vectors = {str(layer): scale * torch.randn(d_model, generator=generator) for layer in layers}
        files[name] = str(folder / f"{name}.safetensors")
        save_file(vectors, files[name])
    return files


def steerings(model: Any, data: rl.Dataset, folder: Path) -> dict[str, str]:
    """Mean shifts of one middle layer's heads and of all heads, everywhere and behind the vote gate."""
    train, validation = data.sample(40).split((0.6, 0.4))
    cache = rl.collect(model, train)
    detector = rl.RiskAwareDetector().fit(cache, validation=rl.collect(model, validation))
    files = {}
    for name, heads in (("head", f"layer:{model.cfg.n_layers // 2}"), ("heads", "all")):
        for gate in ("none", "vote"):
            label = name if gate == "none" else f"gated {name}"
            files[label] = str(folder / label)
            rl.MeanShiftPolicy(heads=heads, gate=gate).fit(cache, detector).scaled(STRENGTH).save(files[label])
    return files


def prepare(name: str, data: rl.Dataset, folder: Path, *, n_texts: int, n_new: int) -> dict[str, Any]:
    """Everything a worker needs but the precision, and counts of tokens."""
    path = readable_folder(name, folder / "model")
    model = rl.load_model(path, dtype="float32")
    texts = chosen_statements(model, data, n_texts)
    rows = encode(model, texts)
    parts = batch_rows(torch.tensor([len(row.ids) for row in rows]), max_tokens=MAX_TOKENS)
    # The order of texts is the order of the batches, so that everyone's tokens come in one order.
    texts = [texts[i] for part in parts for i in part.tolist()]
    batches, at = [], 0
    for part in parts:
        some = texts[at : at + len(part)]
        batches.append(([s.text for s in some], [s.answer_start for s in some]))
        at += len(part)
    rows = encode(model, texts)
    kept = [len(row.ids) - answer_start_position(row, s.answer_start) for row, s in zip(rows, texts)]
    prompts = equal_prompts(model, data, 8)
    edits = directions(model.cfg.n_layers, model.cfg.d_model, folder) | steerings(model, data, folder)
    return {
        "folder": path,
        "batches": batches,
        "prompts": prompts,
        "edits": edits,
        "n_new": n_new,
        "n_tokens": sum(len(row.ids) for row in rows),
        "kept": kept,
        "n_prompt": len(encode(model, prompts)[0].ids),
    }
