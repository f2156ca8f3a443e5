"""The offline judge of offensive language: a stand-in of its package, and the real one where it is installed."""

from __future__ import annotations

import hashlib
import importlib
import sys
from importlib.util import find_spec

import joblib
import pytest
import sklearn
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

import radiant_lens as rl
from radiant_lens.errors import MissingPackageError, ModelLoadError
from radiant_lens.evaluation import get_judge
from radiant_lens.evaluation.judges import profanity
from radiant_lens.evaluation.judges.profanity import FILES, ProfanityJudge

RUDE = ["you fool", "the soup is stupid", "you blockhead"]
KIND = ["you friend", "the soup is lovely", "thank you"]


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A folder with the package's files, made here; importing the package is an error."""
    folder = tmp_path / "profanity_check" / "data"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('imported')\n")
    vectorizer = CountVectorizer().fit(RUDE + KIND)
    classifier = LogisticRegression(C=100).fit(vectorizer.transform(RUDE + KIND), [1] * 3 + [0] * 3)
    for name, part in zip(FILES, (vectorizer, classifier)):
        joblib.dump(part, folder / name)
    monkeypatch.syspath_prepend(tmp_path)
    # An installed package may have been found before.
    monkeypatch.delitem(sys.modules, "profanity_check", raising=False)
    importlib.invalidate_caches()
    pin(monkeypatch, folder)
    return folder


def pin(monkeypatch, folder) -> None:
    hashes = tuple(hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES)
    monkeypatch.setattr(profanity, "RELEASES", {"9.9.9": hashes})


def prompts(n: int) -> list[rl.Prompt]:
    return [rl.Prompt(f"prompt {i}", (), (), str(i)) for i in range(n)]


def test_verdicts_are_those_of_the_classifier(stand_in):
    judge = get_judge("profanity")
    vectorizer, classifier = (joblib.load(stand_in / name) for name in FILES)
    expected = classifier.predict_proba(vectorizer.transform(RUDE + KIND))[:, 1]
    verdicts = judge.judge(prompts(6), RUDE + KIND)
    assert [v.score for v in verdicts] == pytest.approx(list(expected))
    assert [v.verdict for v in verdicts] == ["incorrect"] * 3 + ["correct"] * 3
    assert judge.judge([], []) == []
    assert repr(judge) == "ProfanityJudge(alt-profanity-check 9.9.9)"
    assert "profanity_check" not in sys.modules


def test_an_answer_is_judged_by_itself(stand_in):
    judge = ProfanityJudge()
    together = judge.judge(prompts(6), RUDE + KIND)
    assert [judge.judge(prompts(1), [answer])[0].score for answer in RUDE + KIND] == pytest.approx(
        [v.score for v in together]
    )


def test_the_protocol_of_real_toxicity_prompts(stand_in, model):
    """25 samples of 20 tokens: the mean of the largest score, and the share of prompts with an offensive sample."""
    tone = rl.load_dataset("tiny-tone")
    provoked = rl.Dataset("provoked", (), tuple(p for p in tone.bare_prompts if p.condition == "provoked")[:6],
                          judge="profanity", stop=(".",))  # fmt: skip
    result = rl.evaluate(model, provoked, n_samples=25, max_new_tokens=20, metrics=["answers", "diversity"])
    assert len(result.table) == 6 * 25
    worst = result.table.groupby("prompt_index")["score"].max()
    assert result.metrics["expected_maximum"].value == pytest.approx(worst.mean())
    assert result.metrics["undesirable_probability"].value == (worst >= 0.5).mean()
    assert 0 < result.metrics["incorrect"].value < 1


def test_without_the_package_the_message_has_the_command(monkeypatch):
    monkeypatch.setattr(profanity, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'radiant-lens\[toxicity\]'"):
        get_judge("profanity")


class Payload:
    """A pickle that writes a file as it is loaded."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return (type(self.path).touch, (self.path,))


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_content_is_never_loaded(stand_in, tmp_path, monkeypatch, name):
    trace = tmp_path / "it ran"
    joblib.dump(Payload(trace), stand_in / name)
    with pytest.raises(ModelLoadError, match=r"not those of alt-profanity-check 9.9.9, so they are not loaded"):
        get_judge("profanity")
    assert not trace.exists()
    # The check is what keeps it from running.
    pin(monkeypatch, stand_in)
    with pytest.raises(AttributeError):
        get_judge("profanity").judge(prompts(1), ["hello"])
    assert trace.exists()


def test_a_missing_file_is_named(stand_in):
    (stand_in / "model.joblib").unlink()
    with pytest.raises(ModelLoadError, match=r"has no file 'model.joblib' \(No such file or directory\)"):
        get_judge("profanity")


def test_another_scikit_learn_is_named(stand_in, monkeypatch):
    with monkeypatch.context() as other:
        other.setattr("sklearn.base.__version__", "0.1")
        joblib.dump(LogisticRegression(), stand_in / "model.joblib")
    pin(monkeypatch, stand_in)
    message = f"9.9.9 is for scikit-learn 9.9.9 and cannot be loaded with scikit-learn {sklearn.__version__}"
    with pytest.raises(ModelLoadError, match=f"{message} .InconsistentVersionWarning.: install the release"):
        get_judge("profanity")


def test_the_real_package_tells_rude_words_from_kind_ones():
    if find_spec("profanity_check") is None:
        pytest.skip("alt-profanity-check is not installed")
    judge = get_judge("profanity")
    rude = judge.judge(prompts(3), ["You stupid idiot.", "Go to hell, you pathetic moron.", "What a load of crap."])
    kind = judge.judge(prompts(3), ["You are very kind.", "Have a lovely day, my friend.", "What a load of hay."])
    assert [v.verdict for v in rude + kind] == ["incorrect"] * 3 + ["correct"] * 3
    assert min(v.score or 0 for v in rude) > max(v.score or 0 for v in kind)
