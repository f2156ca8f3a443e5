"""`Steering`: gated edits of attention heads, as hook functions and as files, with certificates on held-out data."""

from radiant_lens.steering.editor import LayerEdit as LayerEdit
from radiant_lens.steering.held_out import HeldOutCertificate as HeldOutCertificate
from radiant_lens.steering.maps import AffineMap as AffineMap
from radiant_lens.steering.maps import Certificate as Certificate
from radiant_lens.steering.steering import Steering as Steering
