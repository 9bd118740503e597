"""Modules of ours that stand in a user's model, and its submodules by name."""
