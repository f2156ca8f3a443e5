"""Damaged artefacts, and places where nothing can be written."""

from __future__ import annotations

from bad_input.mistakes import Wrong, assert_refused, each

import radiant_lens as rl
from radiant_lens._files import FORMAT_VERSION
from radiant_lens.errors import (
    ArtefactError,
    InvalidArgumentError,
    OutputError,
)

ARTEFACTS = [
    Wrong("no folder", lambda w: rl.Steering.load(w.place / "none"), ArtefactError, "with a saved steering"),
    Wrong("no path", lambda w: rl.Steering.load(None), InvalidArgumentError, "`path` must be a str or a PathLike"),
    Wrong("half a steering", lambda w: rl.Steering.load(w.place / "cut"), ArtefactError, "cut' is damaged"),
    Wrong("half a cache", lambda w: rl.HeadCache.load(w.place / "cut-cache"), ArtefactError, "cut-cache' is damaged"),
    Wrong("half an evaluation", lambda w: rl.Evaluation.load(w.place / "evaluation.json"),
          ArtefactError, "The saved evaluation at"),
    Wrong("a pickle", lambda w: rl.Steering.load(w.place / "steering.pt"), ArtefactError, "is not a saved steering"),
    Wrong("a pickle from the Hub's place", lambda w: rl.Steering.from_pretrained(str(w.place / "steering.pt")),
          ArtefactError, "steering.pt"),
    Wrong("a pickle for an evaluation", lambda w: rl.Evaluation.load(w.place / "steering.pt"),
          ArtefactError, "cannot be read"),
    Wrong("a pickle by another name", lambda w: rl.Steering.load(w.place / "pickled"), ArtefactError, "is damaged"),
    Wrong("a later format", lambda w: rl.Steering.load(w.place / "later"),
          ArtefactError, f"has format 99; this version reads up to {FORMAT_VERSION}: update radiant-lens"),
    Wrong("a cache for a steering", lambda w: rl.Steering.load(w.place / "cache"),
          ArtefactError, "is not a saved steering"),
    Wrong("a path out of the folder", lambda w: rl.Steering.load(w.place / "climbing"),
          ArtefactError, "`map_kind` must be one of"),
    Wrong("an absolute path", lambda w: rl.Steering.load(w.place / "absolute"),
          ArtefactError, "it edits '/etc/passwd'; this version edits 'blocks.{layer}.attn.hook_z'"),
    Wrong("a name out of the Hub", lambda w: rl.Steering.from_pretrained("me/../../x"),
          ArtefactError, "'me/../../x' could not be downloaded"),
    Wrong("heads beyond its own model", lambda w: rl.Steering.load(w.place / "no-weights"),
          ArtefactError, "is incomplete: `layer` must be a whole number between 0 and 3; got 99"),
    Wrong("a cache whose texts are a number", lambda w: rl.HeadCache.load(w.place / "flat"),
          ArtefactError, "is incomplete"),
    Wrong("saving over one's own file", lambda w: w.steering.save(w.place / "file"),
          ArtefactError, "exists and is not a saved steering; it is left alone, choose another path"),
    Wrong("saving over another kind", lambda w: w.cache.save(w.place / "steering"),
          ArtefactError, "exists and is not a saved head cache"),
    Wrong("saving below a file", lambda w: w.cache.save(w.place / "file" / "cache"),
          OutputError, "cannot be written (File exists); what was there is unchanged. Free some space, or choose"),
    Wrong("saving where nobody may", lambda w: w.steering.save("/proc/steering"), OutputError, "cannot be written"),
    Wrong("a report where nobody may", lambda w: rl.Report("a", "b").save("/proc/report.html"),
          OutputError, "'/proc/report.html' cannot be written"),
    Wrong("a report in place of a folder", lambda w: rl.Report("a", "b").save(w.place),
          OutputError, "cannot be written (it is not an ordinary file)"),
    Wrong("an evaluation in place of a device", lambda w: w.evaluation.save("/dev/full"),
          OutputError, "'/dev/full' cannot be written (it is not an ordinary file)"),
    Wrong("figures that JSON cannot hold", lambda w: w.steering.save(w.place / "new", metrics={"a": object()}),
          InvalidArgumentError, "`metrics` must be what JSON can hold"),
]  # fmt: skip


@each(ARTEFACTS)
def test_mistakes_raise_their_error(wrong, at_hand):
    assert_refused(wrong, at_hand)
