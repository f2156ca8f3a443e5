"""The tasks with hooks of PyTorch alone, on a Hugging Face model: what every library has to beat."""

from __future__ import annotations

from benchmarks.peer_code.answer_tokens import answer_tokens

CAPTURES = "all heads"
PACKAGES = ("transformers",)


def load(folder, dtype):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval(), AutoTokenizer.from_pretrained(folder)


def capture(model, tokenizer, batches):
    import torch

    projections = [layer.self_attn.o_proj for layer in model.model.layers]
    results = [[] for _ in projections]
    for texts, starts in batches:
        tokens, answers = answer_tokens(tokenizer, texts, starts)
        handles = [
            projection.register_forward_pre_hook(lambda _, args, kept=kept, where=answers: kept.append(args[0][where]))
            for projection, kept in zip(projections, results)
        ]
        with torch.no_grad():
            model.model(**tokens)
        for handle in handles:
            handle.remove()
    return torch.stack([torch.cat(kept) for kept in results], 1)


def generate(model, tokenizer, prompts, vectors, options):
    handles = []
    for layer, vector in vectors.items():
        block = model.model.layers[layer]
        handles.append(block.register_forward_hook(lambda _, args, output, vector=vector: output + vector))
    tokens = model.generate(**tokenizer(prompts, return_tensors="pt"), **options)
    for handle in handles:
        handle.remove()
    return tokens


def residual(model, tokenizer, batches):
    """Outputs of decoder blocks, with which those of libraries that read the residual stream are compared."""
    import torch

    results = [[] for _ in model.model.layers]
    for texts, starts in batches:
        tokens, answers = answer_tokens(tokenizer, texts, starts)
        handles = [
            layer.register_forward_hook(lambda _, args, output, kept=kept, where=answers: kept.append(output[where]))
            for layer, kept in zip(model.model.layers, results)
        ]
        with torch.no_grad():
            model.model(**tokens)
        for handle in handles:
            handle.remove()
    return torch.stack([torch.cat(kept) for kept in results], 1)
