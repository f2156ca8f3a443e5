"""The tasks with repeng, which reads the residual stream at each text's last token, and adds to outputs of blocks."""

from __future__ import annotations

CAPTURES = "residual stream, last tokens"
PACKAGES = ("repeng", "transformers")


def load(folder, dtype):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval(), AutoTokenizer.from_pretrained(folder)


def capture(model, tokenizer, batches):
    import torch
    from repeng.extract import batched_get_hiddens

    layers = list(range(model.config.num_hidden_layers))
    results = [batched_get_hiddens(model, tokenizer, texts, layers, len(texts)) for texts, _ in batches]
    return torch.cat([torch.stack([torch.tensor(result[layer]) for layer in layers], 1) for result in results])


def generate(model, tokenizer, prompts, vectors, options):
    from repeng import ControlModel, ControlVector

    control = ControlModel(model, list(vectors))
    control.set_control(ControlVector("llama", {layer: vector.float().numpy() for layer, vector in vectors.items()}))
    tokens = control.generate(**tokenizer(prompts, return_tensors="pt"), **options)
    control.unwrap()
    return tokens
