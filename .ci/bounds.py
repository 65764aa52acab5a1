"""Fails if the oldest releases that can be installed together are not those that pyproject.toml promises.

Its argument is a file of constraints, ``name==version``, for the interpreter that runs it.
"""

from __future__ import annotations

import pathlib
import sys
import tomllib
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


def lower_bounds(project: dict[str, Any]) -> dict[str, Version]:
    """The lower bound of each dependency, those of the extras included."""
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    lines = [line for group in groups for line in group]
    asked = [Requirement(line) for line in lines]
    return {
        canonicalize_name(one.name): Version(bound.version)
        for one in asked
        if one.marker is None or one.marker.evaluate()
        for bound in one.specifier
        if bound.operator == ">="
    }


def main(constraints: str) -> int:
    """Prints each bound that cannot be reached; returns how many there are."""
    installed = dict(line.split("==") for line in pathlib.Path(constraints).read_text().split())
    with pathlib.Path("pyproject.toml").open("rb") as file:
        bounds = lower_bounds(tomllib.load(file)["project"])
    wrong = {
        name: installed[name]
        for name, bound in bounds.items()
        if Version(installed[name]).release[: len(bound.release)] != bound.release
    }
    for name, version in wrong.items():
        print(f"{name}>={bounds[name]} is promised, {version} is the oldest that can be installed")
    return len(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
