"""How earlier releases spelled the options of `compress`: translated here, with a line that shows the new spelling."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from prunus.errors import ConfigError, PruneError
from prunus.methods.base import MaskMethod
from prunus.methods.registry import resolve

Arguments = list[str]
Said = Mapping[str, str | None]
"""The options of one command with their values."""


@dataclass(frozen=True)
class Former:
    """An option that another has taken the place of.

    Attributes:
        becomes: its value (empty for a flag) and all options that were said -> the arguments that say the same.
        flag: it has no value.
        quiet: it stays as a short form, without a line about it.
    """

    becomes: Callable[[str, Said], Arguments]
    flag: bool = False
    quiet: bool = False


def _as(option: str, name: str = "") -> Callable[[str, Said], Arguments]:
    return lambda value, _: [option, f"{name}={value}" if name else value]


def _open(name: str) -> Former:
    return Former(lambda *_: ["--allow", name], flag=True)


def _epochs(value: str, said: Said) -> Arguments:
    """Of the recovery, or of the learning where the method trains the weights along."""
    if _trains(said):
        return ["--set", f"epochs={value}"]
    return ["--recover", "none" if value == "0" else f"epochs={value}"]


def _batch_size(value: str, said: Said) -> Arguments:
    learning = ["--run", f"batch_size={value}"]
    return learning if _trains(said) else [*learning, "--recover", f"batch_size={value}"]


def _compiled(_: str, said: Said) -> Arguments:
    return ["--run", "modes=eager,compiled" if "--no-onnx" in said else "modes=eager,compiled,onnx"]


def _trains(said: Said) -> bool:
    """True for methods that look inside weights; a name that nobody has is refused later, where methods are."""
    try:
        return isinstance(resolve(said.get("--method") or "dirichlet"), MaskMethod)
    except PruneError:
        return False


FORMER: dict[str, Former] = {
    "--budget": Former(_as("--target"), quiet=True),
    "--pruning-ratio": Former(_as("--target")),
    "--pattern": Former(_as("--target")),
    "--bits": Former(_as("--set", "bits")),
    "--activation-bits": Former(_as("--set", "activation_bits")),
    "--epochs": Former(_epochs),
    "--lr": Former(_as("--recover", "lr")),
    "--optimizer": Former(_as("--recover", "optimizer")),
    "--distillation": Former(_as("--recover", "distillation")),
    "--scope": Former(_as("--allocate", "scope")),
    "--round-to": Former(_as("--allocate", "round_to")),
    "--head-dims": _open("head_dims"),
    "--inexact": _open("inexact"),
    "--follow-branches": _open("follow_branches"),
    "--own-class": _open("own_class"),
    "--compiled": Former(_compiled, flag=True),
    "--onnx": Former(lambda *_: ["--export", "auto,onnx"], flag=True),
    "--no-onnx": Former(lambda *_: ["--export", "no-onnx"], flag=True),
    "--batch-size": Former(_batch_size, quiet=True),
    "--force": Former(lambda *_: ["--run", "force=true"], flag=True, quiet=True),
    "--resume": Former(lambda *_: ["--run", "resume=true"], flag=True, quiet=True),
}
OF_DEMO = {"--budget": FORMER["--budget"]}
JOINED = ("--allow", "--export")


def translated(arguments: Sequence[str], say: Callable[[str], None], table: Mapping[str, Former] = FORMER) -> Arguments:
    """The arguments as they are written now; `say` receives a line for each that was written otherwise.

    Args:
        arguments: the words behind the command's name.
        say: receives text.
        table: the options that are translated.

    Raises:
        ConfigError: the target is said twice.
    """
    pieces = _pieces(arguments, table)
    said = dict(pieces)
    found: list[tuple[str, str | None]] = []
    for option, value in pieces:
        former = table.get(option)
        if former is None:
            found.append((option, value))
            continue
        now = former.becomes(value or "", said)
        if not former.quiet:
            new = " ".join(f"{o} {shlex.quote(v or '')}" for o, v in _pieces(now, {}))
            say(f"{f'{option} {value}' if value else option} goes with the next release: write {new}")
        found += _pieces(now, {})
    targets = [value or "" for option, value in found if option == "--target"]
    if len(targets) > 1:
        raise ConfigError("--target", f"it is said twice: {', '.join(targets)}", "say once how much goes")
    lists = {name: [v or "" for option, v in found if option == name] for name in JOINED}
    rest = [piece for piece in found if piece[0] not in JOINED]
    joined = [(name, ",".join(values)) for name, values in lists.items() if values]
    return [word for option, value in [*rest, *joined] for word in (option, value) if word is not None]


def _pieces(arguments: Sequence[str], table: Mapping[str, Former]) -> list[tuple[str, str | None]]:
    """Options with their values, in either way of writing; what has no value beside None."""
    found: list[tuple[str, str | None]] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        option, equals, text = word.partition("=") if word.startswith("--") else (word, "", "")
        value = text if equals else None
        former = table.get(option)
        takes = option.startswith("--") and option != "--help" and not (former is not None and former.flag)
        if takes and not equals and words:
            value = words.pop(0)
        found.append((option, value))
    return found
