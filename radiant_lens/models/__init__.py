"""Models: loading, identity and tokens."""

from radiant_lens.models.identity import signature as signature
from radiant_lens.models.loading import load_model as load_model
from radiant_lens.models.loading import load_plain as load_plain
