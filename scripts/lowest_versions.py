"""Prints the lowest version of each dependency that pyproject.toml allows, as pip's constraints.

python scripts/lowest_versions.py EXTRA...
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
needed = project["dependencies"]
for extra in sys.argv[1:]:
    needed += project["optional-dependencies"][extra]
print("\n".join(requirement.replace(">=", "==") for requirement in needed))
