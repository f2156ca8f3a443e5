"""The tasks with TransformerLens' own hooks."""

from __future__ import annotations

from benchmarks.peer_code.answer_tokens import answer_tokens

CAPTURES = "all heads"
PACKAGES = ("transformer-lens", "transformers")


def load(folder, dtype):
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    # The bridge's own tokenizer would put BOS in front of every text.
    return TransformerBridge.boot_transformers(folder, dtype=dtype), AutoTokenizer.from_pretrained(folder)


def capture(model, tokenizer, batches):
    import torch

    results = []
    for texts, starts in batches:
        tokens, answers = answer_tokens(tokenizer, texts, starts)
        with torch.no_grad():
            _, cache = model.run_with_cache(
                tokens["input_ids"],
                attention_mask=tokens["attention_mask"],
                names_filter=lambda name: name.endswith("hook_z"),
            )
        results.append(torch.stack([cache["z", layer][answers].flatten(1) for layer in range(model.cfg.n_layers)], 1))
    return torch.cat(results)


def generate(model, tokenizer, prompts, vectors, options):
    hooks = [
        (f"blocks.{layer}.hook_out", lambda value, hook, vector=vector: value + vector)
        for layer, vector in vectors.items()
    ]
    with model.hooks(fwd_hooks=hooks):
        return model.generate(
            tokenizer(prompts, return_tensors="pt")["input_ids"],
            max_new_tokens=options["max_new_tokens"],
            do_sample=False,
            stop_at_eos=False,
            return_type="tokens",
            verbose=False,
        )
