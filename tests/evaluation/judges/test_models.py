"""Judges that are models, on tiny ones saved to a folder, against plain passes of transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2ForSequenceClassification

import radiant_lens as rl
from radiant_lens.errors import InvalidArgumentError, ModelLoadError, UnknownNameError
from radiant_lens.evaluation import ClassifierJudge, TruthfulQAJudge, score_statements
from radiant_lens.evaluation.judges import models as model_judges
from radiant_lens.evaluation.judges.models import question
from radiant_lens.tiny.train import TrainingConfig, make_model, make_tokenizer

WORDS = ["Q", "A", ":", "True", "Helpful", "yes", "no", "who", "what", "is", "the", "cat", "dog", "fool", "lovely", "?"]
PROMPTS = [rl.Prompt(f"Q: who is the {word} ?\nA:", ("a",), ("b",), word) for word in ("cat", "dog", "fool")]
ANSWERS = ["the cat is lovely", "the fool", "is"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Folders of classifiers with three labels that exclude each other, and with three that do not."""
    tokenizer = make_tokenizer(WORDS)
    labels = {0: "fine", 1: "insult", 2: "threat"}
    folders = {}
    for kind in ("single", "multi"):
        torch.manual_seed(1)
        config = GPT2Config(
            vocab_size=len(tokenizer), n_positions=16, n_embd=16, n_layer=1, n_head=2,
            pad_token_id=tokenizer.pad_token_id, id2label=labels, label2id={v: k for k, v in labels.items()},
            problem_type=f"{kind}_label_classification",
        )  # fmt: skip
        model = GPT2ForSequenceClassification(config)
        # Random weights give all labels about a third; larger ones tell answers apart.
        model.score.weight.data *= 50
        folders[kind] = tmp_path_factory.mktemp("classifiers") / kind
        tokenizer.model_max_length = 16
        model.save_pretrained(folders[kind])
        tokenizer.save_pretrained(folders[kind])
    return folders


def probabilities(folder, answer: str) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = GPT2ForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer(answer)["input_ids"]])).logits[0]
    return logits.sigmoid() if model.config.problem_type.startswith("multi") else logits.softmax(-1)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("kind", ["single", "multi"])
def test_a_classifier_agrees_with_a_plain_pass(classifier, kind, batch_size):
    labels = ["insult", "threat"]
    judge = ClassifierJudge(classifier[kind], undesirable_labels=labels, batch_size=batch_size, device="cpu")
    verdicts = judge.judge(PROMPTS, ANSWERS)
    for verdict, answer in zip(verdicts, ANSWERS):
        bad = probabilities(classifier[kind], answer)[1:]
        expected = float(bad.sum() if kind == "single" else bad.max())
        assert verdict.score == pytest.approx(expected, abs=1e-5)
        assert verdict.verdict == ("incorrect" if expected >= 0.5 else "correct")
    assert len({v.verdict for v in verdicts}) == 2
    assert "insult" in repr(judge)


def test_long_answers_are_cut(classifier):
    judge = ClassifierJudge(classifier["single"], undesirable_labels=["insult"], device="cpu")
    # With <bos> the classifier reads 16 tokens.
    whole, beyond = (judge.judge(PROMPTS[:1], ["the cat is " * n])[0] for n in (5, 50))
    assert beyond.score == pytest.approx(whole.score, abs=1e-6)
    assert judge.judge(PROMPTS[:1], ["the cat"])[0].score != pytest.approx(whole.score, abs=1e-3)


def test_wrong_labels_sizes_and_names_of_classifiers_raise_errors(classifier, tmp_path):
    folder = classifier["single"]
    with pytest.raises(UnknownNameError, match="is not a known label of .*: did you mean 'insult'"):
        ClassifierJudge(folder, undesirable_labels=["insults"])
    for labels in ([], "insult"):
        with pytest.raises(InvalidArgumentError, match="`undesirable_labels` must be a list of at least one label"):
            ClassifierJudge(folder, undesirable_labels=labels)
    with pytest.raises(InvalidArgumentError, match="`batch_size` must be a whole number"):
        ClassifierJudge(folder, undesirable_labels=["insult"], batch_size=0)
    for name in (str(tmp_path), "some/classifier"):
        with pytest.raises(ModelLoadError, match=f"Classifier '{name}' could not be loaded .*; pass a Hub id"):
            ClassifierJudge(name, undesirable_labels=["insult"])


@pytest.fixture(scope="module")
def yes_folders(tmp_path_factory):
    """Language models of random weights, and ones that always or never say yes."""
    tokenizer = make_tokenizer(WORDS)
    folders = {}
    for kind, (spread, strength) in {"random": (20, 500), "yes": (0, 1e4), "no": (0, -1e4)}.items():
        config = TrainingConfig(architecture="gpt2", n_layers=1, n_heads=2, d_model=16, d_mlp=16, seed=1)
        model = make_model(config, tokenizer)
        yes = model.lm_head.weight[tokenizer.convert_tokens_to_ids("yes")].detach()
        # A final state along the embedding of "yes", or against it, decides the answer whatever the text is.
        model.transformer.ln_f.weight.data *= spread
        model.transformer.ln_f.bias.data.copy_(strength * yes)
        folders[kind] = tmp_path_factory.mktemp("judges") / kind
        model.save_pretrained(folders[kind])
        tokenizer.save_pretrained(folders[kind])
    return folders


def test_the_published_prompts(yes_folders):
    folder = yes_folders["random"]
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    yes = tokenizer.convert_tokens_to_ids("yes")
    verdicts = TruthfulQAJudge(folder, folder, device="cpu", max_tokens=30).judge(PROMPTS, [f" {a} " for a in ANSWERS])
    seen = []
    for verdict, word, answer in zip(verdicts, ("cat", "dog", "fool"), ANSWERS):
        expected = []
        for ending in ("True:", "Helpful:"):
            ids = tokenizer(f"Q: who is the {word} ?\nA: {answer}\n{ending}")["input_ids"]
            with torch.no_grad():
                expected.append(float(model(torch.tensor([ids])).logits[0, -1].softmax(-1)[yes]))
        assert verdict.score == pytest.approx(1 - expected[0], abs=1e-5)
        assert verdict.informative == (expected[1] >= 0.5)
        assert verdict.verdict == ("correct" if expected[0] >= 0.5 else "incorrect")
        seen += expected
    assert max(seen) - min(seen) > 0.05


def test_each_judge_reads_its_own_prompt(yes_folders, monkeypatch):
    texts = []

    def spy(model, statements, **options):
        texts.append(statements[0].text)
        return score_statements(model, statements, **options)

    monkeypatch.setattr(model_judges, "score_statements", spy)
    TruthfulQAJudge(yes_folders["yes"], yes_folders["no"], device="cpu").judge(PROMPTS[:1], [" the fool "])
    assert texts == [f"Q: who is the cat ?\nA: the fool\n{ending} yes" for ending in ("True:", "Helpful:")]


def test_yes_and_no(yes_folders):
    yes, no = yes_folders["yes"], yes_folders["no"]
    for truth, informative, expected in ((yes, no, ("correct", 0, False)), (no, yes, ("incorrect", 1, True))):
        judge = TruthfulQAJudge(truth, informative, device="cpu")
        assert judge.judge(PROMPTS, ANSWERS)[0] == pytest.approx(expected, abs=1e-6)
    alone = TruthfulQAJudge(yes, None, device="cpu")
    assert alone.judge(PROMPTS, ANSWERS)[0].informative is None
    assert repr(alone) == f"TruthfulQAJudge({str(yes)!r}, None)"


def test_the_open_judges_are_the_default(monkeypatch, model):
    names = []
    monkeypatch.setattr(model_judges, "load_model", lambda name, **options: names.append(name) or model)
    TruthfulQAJudge()
    assert names == ["allenai/truthfulqa-truth-judge-llama2-7B", "allenai/truthfulqa-info-judge-llama2-7B"]
    with pytest.raises(InvalidArgumentError, match="`max_tokens` must be a whole number"):
        TruthfulQAJudge(max_tokens=0)


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("Q: who?\nA:", "who?"),
        ("Q: one?\nA: this.\n\nQ: two?\nA:", "two?"),
        ("Q : who is it ? A :", "who is it ?"),
        ("Question: who?\nAnswer:", "who?"),
        ("Once upon a time", "Once upon a time"),
    ],
)
def test_the_question_of_a_prompt(text, last):
    assert question(rl.Prompt(text, (), (), "g")) == last
    # A prompt that a template made records its question; a rendered chat has no markers to find it by.
    chat = rl.Prompt(f"<|user|>{text}<|assistant|>", (), (), "g", question="who is that?", rendered=True)
    assert question(chat) == "who is that?"


def test_evaluated_and_judged_again(model, experiment, classifier, yes_folders):
    small = experiment.test.head(5)
    judge = TruthfulQAJudge(yes_folders["yes"], yes_folders["no"], device="cpu")
    result = rl.evaluate(model, small, judge=judge, metrics=["answers", "diversity"])
    names = ("correct", "informative", "true_informative", "true_times_informative")
    assert [result.metrics[name].value for name in names] == [1, 0, 0, 0]
    toxic = ClassifierJudge(classifier["single"], undesirable_labels=["insult", "threat"], device="cpu")
    again = result.rejudge(toxic)
    assert again.metrics["score"].value == pytest.approx(again.table["score"].mean())
    assert not {"informative", "true_times_informative"} & set(again.metrics)
    assert "ClassifierJudge" in again.settings["judge"]
