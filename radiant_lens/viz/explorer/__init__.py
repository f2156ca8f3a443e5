"""The explorer: a steering that is moved by hand, in a notebook or on a page of a local server."""

from radiant_lens.viz.explorer.code import Source as Source
from radiant_lens.viz.explorer.explorer import Explorer as Explorer
from radiant_lens.viz.explorer.explorer import HeadDetails as HeadDetails
from radiant_lens.viz.explorer.server import serving as serving
from radiant_lens.viz.explorer.settings import Settings as Settings
from radiant_lens.viz.explorer.widget import ExplorerWidget as ExplorerWidget
from radiant_lens.viz.explorer.widget import explore as explore
