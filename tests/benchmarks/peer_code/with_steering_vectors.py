"""The tasks with steering-vectors, which reads and adds to the residual stream (outputs of decoder blocks)."""

from __future__ import annotations

from benchmarks.peer_code.answer_tokens import answer_tokens

CAPTURES = "residual stream"
PACKAGES = ("steering-vectors", "transformers")


def load(folder, dtype):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval(), AutoTokenizer.from_pretrained(folder)


def capture(model, tokenizer, batches):
    import torch
    from steering_vectors import record_activations

    results = []
    for texts, starts in batches:
        tokens, answers = answer_tokens(tokenizer, texts, starts)
        with torch.no_grad(), record_activations(model) as records:
            model.model(**tokens)
        results.append(torch.stack([record[0][answers] for record in records.values()], 1))
    return torch.cat(results)


def generate(model, tokenizer, prompts, vectors, options):
    from steering_vectors import SteeringVector

    with SteeringVector(vectors).apply(model):
        return model.generate(**tokenizer(prompts, return_tensors="pt"), **options)
