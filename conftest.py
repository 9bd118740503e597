"""`pytest tests src` looks for examples in every module but those of this name, which cannot be imported twice."""

collect_ignore_glob = ["*conftest.py"]
