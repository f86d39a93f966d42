"""A standard library of a few short files."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest


def small_stdlib(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten modules at the top and a package of five files in another style; returns the folder."""
    for i in range(10):
        lines = [f"def number_{i}_{j}(x):\n    return x + {j}\n\n" for j in range(6)]
        (folder / f"module{i}.py").write_text("".join(lines))
    package = folder / "tables" / "inner"
    package.mkdir(parents=True)
    for path in (package.parent / "__init__.py", package / "__init__.py"):
        path.write_text("TABLE = (\n" + "    0x41,  # LETTER A\n" * 9 + ")\n")
    for i in range(3):
        (package / f"t{i}.py").write_text("".join(f"'{j}' # DIGIT {j}\n" for j in range(20)))
    paths = {**sysconfig.get_paths(), "stdlib": str(folder)}
    monkeypatch.setattr(sysconfig, "get_paths", lambda: paths)
    return folder
