"""`pytest tests src` looks for examples in every module but those of this name, which cannot be imported twice.

Nor in the callback for Lightning where Lightning is not installed.
"""

from importlib.util import find_spec

collect_ignore_glob = ["*conftest.py", *([] if find_spec("lightning") else ["*trainers/lightning.py"])]
