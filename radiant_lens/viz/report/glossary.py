"""Words of a report that are explained where the pointer is, and in a list at its end."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

MEANINGS = {
    "KL": "Kullback-Leibler divergence: how far the steered model's next-token probabilities are from the unsteered "
    "model's, in nats per token; 0 is no change.",
    "nat": "Unit of information with the natural logarithm; 0.69 nats double or halve a probability.",
    "cross-entropy": "Mean surprise of the model at a text, in nats per token; lower is better.",
    "log-odds": "Logarithm of the probability of correct answers over that of incorrect ones.",
    "head": "Attention head: it moves information between tokens. Its output is what the steering edits.",
    "gate": "Rule that decides at each token whether a head is edited.",
    "gated": "The gate is open at this token, so the head is edited.",
    "vote": "A head votes where its detector flags the token; a layer's vote needs enough of its heads.",
    "flagged": "Taken for undesirable by a detector.",
    "detector": "Linear score of a head's activation that tells undesirable from desirable text.",
    "risk": "False alarm rate plus weighted miss rate of a detector; 0 is perfect.",
    "FPR": "False positive rate: share of desirable examples that are flagged.",
    "FNR": "False negative rate: share of undesirable examples that are missed.",
    "MC1": "Share of questions whose best answer gets the highest probability of all choices.",
    "MC2": "Probability of the true answers of a question among all its choices.",
    "certificate": "Measured bound on how often the detectors still flag after the edit. It is about activations, not "
    "about answers.",
    "held-out": "Not used in the fit.",
    "group": "Unit that a split keeps together, such as all texts of one question; intervals count groups.",
    "95% interval": "Range that covers the true value in 95 of 100 repetitions with other groups.",
    "control": "Edit that should not help, such as one in a random direction. A gain that it shares is no merit of the "
    "method.",
    "gamma": "Share of edited activations that may still be flagged, if the fit's assumptions hold.",
    "kappa": "Standard deviations by which the mean score is moved below the boundary.",
}
_MEANINGS = {word.lower(): meaning for word, meaning in MEANINGS.items()}
# Hyphens belong to words, so that "non-held-out" is another word. Longest first: "gated" is not "gate" and a letter.
_WORDS = "|".join(sorted(map(re.escape, MEANINGS), key=len, reverse=True))
_WORD = re.compile(rf"(?<![\w-])({_WORDS})s?(?![\w-])", re.IGNORECASE)


def explain(text: str) -> Markup:
    """Escape a text and mark the first use of each word that has a meaning here.

    Example:
        >>> explain("2 < 3 nats").striptags()
        '2 < 3 nats'
    """
    pieces: list[Markup] = []
    seen: set[str] = set()
    end = 0
    for match in _WORD.finditer(text):
        word = match[1].lower()
        if word not in seen:
            seen.add(word)
            marked = Markup('<abbr title="{}">{}</abbr>').format(_MEANINGS[word], match[0])
            pieces += [escape(text[end : match.start()]), marked]
            end = match.end()
    return Markup("").join([*pieces, escape(text[end:])])
