"""The tasks with nnsight, whose blocks of code are traced and run inside the model's pass."""

from __future__ import annotations

from benchmarks.peer_code.answer_tokens import answer_tokens

CAPTURES = "all heads"
PACKAGES = ("nnsight", "transformers")


def load(folder, dtype):
    from nnsight import TransformersModel

    model = TransformersModel(folder, task="text-generation", dispatch=True, dtype=dtype)
    return model, model.tokenizer


def capture(model, tokenizer, batches):
    import nnsight
    import torch

    results = []
    for texts, starts in batches:
        tokens, answers = answer_tokens(tokenizer, texts, starts)
        with torch.no_grad(), model.trace(**tokens) as tracer:
            kept = nnsight.save([])
            for layer in model.model.layers:
                kept.append(layer.self_attn.o_proj.input[answers])
            tracer.stop()
        results.append(torch.stack(kept, 1))
    return torch.cat(results)


def generate(model, tokenizer, prompts, vectors, options):
    tokens = tokenizer(prompts, return_tensors="pt")
    with model.generate(**tokens, **options) as tracer:
        for _ in tracer.iter[: options["max_new_tokens"]]:
            for layer, vector in vectors.items():
                model.model.layers[layer].output = model.model.layers[layer].output + vector
        result = tracer.result.save()
    return result
