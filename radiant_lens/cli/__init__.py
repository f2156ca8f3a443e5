"""The command `radiant-lens`."""

from radiant_lens.cli.app import main as main
