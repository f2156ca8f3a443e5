"""One self-contained page about a steering."""

from radiant_lens.viz.report._report import Report as Report
from radiant_lens.viz.report._report import report as report
