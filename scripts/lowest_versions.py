"""Prints the lowest version of each dependency that pyproject.toml allows, as pip's constraints."""

import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
needed = [*project["dependencies"], *project["optional-dependencies"]["demo"]]
print("\n".join(requirement.replace(">=", "==") for requirement in needed))
