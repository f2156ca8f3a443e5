"""Controls of style: what can be had from answers without their question."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from radiant_lens.datasets.dataset import Dataset
from radiant_lens.errors import DataError
from radiant_lens.evaluation.multiple_choice import choices, mc1_and_mc2

OFFSET = 7


def with_swapped_answers(data: Dataset, *, offset: int = OFFSET) -> Dataset:
    """Return the prompts with the answers of the prompt `offset` places further on, around the end.

    No answer fits its question, so a steering that makes the correct ones more probable here does so by their style.
    Prompts without both kinds of answers have nothing to swap: they stay as they are, and nothing is taken from them.

    Raises:
        DataError: all prompts with answers are of one group.
    """
    prompts = list(data.prompts)
    answered = [i for i, prompt in enumerate(prompts) if prompt.has_choices]
    if len({prompts[i].group for i in answered}) == 1:
        raise DataError(f"Data set {data.name!r} has one group: answers of another question are needed for its style.")
    for place, i in enumerate(answered):
        later = (data.prompts[answered[(place + offset + k) % len(answered)]] for k in range(len(answered)))
        # Several prompts of one group may ask the same.
        other = next(prompt for prompt in later if prompt.group != data.prompts[i].group)
        prompts[i] = replace(
            prompts[i],
            correct_answers=other.correct_answers,
            incorrect_answers=other.incorrect_answers,
            best_answer=other.best_answer,
            mc1_incorrect=other.mc1_incorrect,
        )
    return replace(data, atoms=(), bare_prompts=tuple(prompts), contexts=None, few_shot=None)


def score_answers_alone(train: Dataset, test: Dataset) -> pd.DataFrame:
    """Score each test prompt by a classifier that reads answers and no question.

    The classifier is a logistic regression on the TF-IDF weights of words and pairs of words. An answer's probability
    is that of being correct.

    Args:
        train: prompts on whose correct and incorrect answers the classifier is trained.
        test: prompts of other groups.

    Returns:
        One row for each test prompt with both kinds of answers: group, mc1, mc2.
    """
    labelled = [
        (text, is_correct)
        for prompt in train.prompts
        if (options := choices(prompt)) is not None
        for texts, is_correct in ((options.correct, True), (options.incorrect, False))
        for text in texts
    ]
    texts, labels = zip(*labelled)
    classifier = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=1000))
    classifier.fit(texts, labels)
    rows = []
    for prompt in test.prompts:
        options = choices(prompt)
        if options is not None:
            log_probs = torch.tensor(classifier.predict_log_proba(options.texts)[:, 1])
            rows.append((prompt.group, *mc1_and_mc2(options, dict(zip(options.texts, log_probs)))))
    return pd.DataFrame(rows, columns=["group", "mc1", "mc2"])
