"""Display of objects in a notebook: a heading, a few lines, and one small table or picture."""

from radiant_lens.notebook.html import Fragment as Fragment
from radiant_lens.notebook.html import card as card
from radiant_lens.notebook.html import html_table as html_table
from radiant_lens.notebook.pictures import head_map as head_map
from radiant_lens.notebook.pictures import marked_tokens as marked_tokens
