"""The tasks with radiant_lens: heads are read on a bridge, and edited on the Hugging Face model inside it."""

from __future__ import annotations

CAPTURES = "all heads"
PACKAGES = ("radiant-lens", "transformer-lens", "transformers")


def load(folder, dtype):
    import radiant_lens as rl

    model = rl.load_model(folder, dtype=dtype)
    return model, model.tokenizer


def capture(model, tokenizer, batches):
    import radiant_lens as rl

    statements = [
        rl.Statement(text, 0, answer_start=start) for texts, starts in batches for text, start in zip(texts, starts)
    ]
    return rl.collect(model, statements).z


def generate(model, tokenizer, prompts, steering, options):
    import radiant_lens as rl

    with rl.steer(model, steering):
        return model.generate(**tokenizer(prompts, return_tensors="pt"), **options)
