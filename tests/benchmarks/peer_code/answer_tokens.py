"""Tokens of texts and where their answers are, as users of the peers write it; `collect` of radiant_lens does the same.

An answer's positions run from the token that predicts its first token to its last token.
"""

from __future__ import annotations


def answer_tokens(tokenizer, texts, starts):
    import torch

    tokens = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right", return_offsets_mapping=True)
    answers = tokens.pop("offset_mapping")[..., 1] > torch.tensor(starts)[:, None]
    return tokens, answers | answers.roll(-1, 1)
