"""What a model's parameters and buffers are called in a folder's shards."""

from __future__ import annotations

from torch import nn

from prunus.errors import ArtifactError
from prunus.files.shards import Shards
from prunus.streaming.layerlist import LayerList


def stored_names(model: nn.Module, listed: LayerList, shards: Shards) -> dict[str, str]:
    """Parameter or stored buffer -> its name in the shards: its own, or without or with the prefix of the bare model.

    Args:
        model: on any device, also `meta`.
        listed: its layers.
        shards: its weights.

    Raises:
        ArtifactError: a tensor is not there, or of another shape; tied ones may be there once.
    """
    prefix = str(getattr(model, "base_model_prefix", "") or "")
    found: dict[str, str] = {}
    here: set[int] = set()
    tensors = dict(model.state_dict(keep_vars=True))
    for name, tensor in tensors.items():
        ways = (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}")
        stored = next((n for n in ways if n in shards.files), None)
        if stored is None:
            continue
        if shards.shapes[stored] != tuple(tensor.shape):
            what = f"{stored!r} is {list(shards.shapes[stored])}, the configuration makes it {list(tensor.shape)}"
            raise ArtifactError(str(shards.folder), what, "give a folder whose weights and config.json belong together")
        found[name] = stored
        here.add(id(tensor))
    lost = [name for name, tensor in tensors.items() if id(tensor) not in here]
    # Behind the layers a class may store under another name: those are copied, and read by nobody.
    more = [shards.shapes[n] for n in shards.files if n not in found.values()]
    for name in [n for n in lost if listed.number_of(n) is None and tuple(tensors[n].shape) in more]:
        lost.remove(name)
        more.remove(tuple(tensors[name].shape))
    if lost:
        what = f"no shard holds {lost[0]!r}" + (f", nor {len(lost) - 1} more" if len(lost) > 1 else "")
        raise ArtifactError(str(shards.folder), what, "give all shards; write them anew with save_pretrained")
    return found
