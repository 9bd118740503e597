"""A cut in the middle of a training; `trainers.transformers` and `trainers.lightning` are callbacks of theirs."""

from prunus.trainers.midway import cut_midway_

__all__ = ["cut_midway_"]
