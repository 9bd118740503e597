"""The command line."""

from prunus.cli.app import main

__all__ = ["main"]
