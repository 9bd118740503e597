"""Being here puts this folder on the import path, so that every test can import the zoo."""

import os

from hypothesis import settings

from torchvision_operators import declare_torchvision_operators

settings.register_profile("same every time", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile("explore" if os.environ.get("PRUNUS_EXPLORE") else "same every time")

declare_torchvision_operators()
