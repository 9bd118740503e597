"""Typed refusals. Each names the thing, says what is wrong with it, and what to do about it."""

from __future__ import annotations


class PruneError(Exception):
    """A refusal of one paragraph: `where` (module, group, file or argument), `what` happened, how to `fix` it."""

    def __init__(self, where: str, what: str, fix: str) -> None:
        self.where, self.what, self.fix = where, what, fix
        super().__init__(f"{where}\n  what: {what}\n  fix:  {fix}")

    def __reduce__(self) -> tuple[type[PruneError], tuple[str, str, str]]:
        return type(self), (self.where, self.what, self.fix)


class TraceError(PruneError):
    """The model cannot be captured or analysed (a branch on data, example inputs that do not fit)."""


class BudgetError(PruneError):
    """A budget that cannot be parsed, or that no allowed plan meets."""


class PlanError(PruneError):
    """A plan that does not fit the model, or kept counts that are impossible."""


class SurgeryError(PruneError):
    """Removal failed or could not be proven; the model is as it was."""


class ConfigError(PruneError):
    """A setting outside its range, or a name that matches nothing."""


class DataError(PruneError):
    """Data that cannot be read, of the wrong shape, or with NaN or infinity in inputs, loss or gradients."""


class ArtifactError(PruneError):
    """An artifact that is truncated, damaged, or of another architecture; nothing was loaded."""


class ExportError(PruneError):
    """An exported file that could not be written or does not agree with the model."""


class MissingDependencyError(PruneError):
    """An optional package is needed for this; the message names the extra that brings it."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line of at most 300 characters."""
    if isinstance(error, PruneError):
        return f"{error.where}: {error.what}"[:300]
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
