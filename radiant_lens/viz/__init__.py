"""Figures (Plotly) and views of tokens (CircuitsVis). Each takes objects of the package; none needs a network."""

from radiant_lens.viz._trade_off import trade_off as trade_off
from radiant_lens.viz.activations import displacement_spectrum as displacement_spectrum
from radiant_lens.viz.activations import head_classes as head_classes
from radiant_lens.viz.certificates import still_flagged as still_flagged
from radiant_lens.viz.circuits import EmptyView as EmptyView
from radiant_lens.viz.circuits import HtmlView as HtmlView
from radiant_lens.viz.detection import error_rates as error_rates
from radiant_lens.viz.detection import layer_risk as layer_risk
from radiant_lens.viz.detection import roc as roc
from radiant_lens.viz.detection import vote_curves as vote_curves
from radiant_lens.viz.grids import head_map as head_map
from radiant_lens.viz.heads import head_effects as head_effects
from radiant_lens.viz.heads import head_risk as head_risk
from radiant_lens.viz.moves import activation_scatter as activation_scatter
from radiant_lens.viz.moves import score_histogram as score_histogram
from radiant_lens.viz.pictures import keep_pictures as keep_pictures
from radiant_lens.viz.planar import planar_edits as planar_edits
from radiant_lens.viz.planar import score_cone as score_cone
from radiant_lens.viz.results import knock_out as knock_out
from radiant_lens.viz.results import knock_out_estimates as knock_out_estimates
from radiant_lens.viz.results import study as study
from radiant_lens.viz.tokens import attention as attention
from radiant_lens.viz.tokens import colored_tokens as colored_tokens
from radiant_lens.viz.tokens import vote_timeline as vote_timeline
from radiant_lens.viz.writes import edit_writes as edit_writes
