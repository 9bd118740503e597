"""What stays takes over what goes: layers behind removed units are refitted to the dense network, in closed form."""

from prunus.refit.config import RepairConfig
from prunus.refit.repair import Repaired, repair
from prunus.refit.told import Refit

__all__ = ["Refit", "RepairConfig", "Repaired", "repair"]
