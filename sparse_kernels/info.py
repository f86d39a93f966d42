"""``python -m sparse_kernels.info``: versions, build flags, and which backend runs what."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import platform
import sys

import torch

from . import _backend, _loader
from ._schemas import OPS
from ._version import __version__

DEVICES = ("cpu", "cuda")
#: the oldest torch the compiled libraries run on: the stable ABI they are built against
TARGET_TORCH = "2.11"


def _triton_version() -> str:
    if importlib.util.find_spec("triton") is None:
        return "not installed"
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "unknown version"


def build_info(name: str) -> dict[str, str] | str:
    """What a compiled library (``_C`` or ``_C_cuda``) was built with, or why it is not loaded."""
    module = getattr(_loader, name)
    if module is None:
        return f"not loaded: {_loader.load_errors.get(name)}"
    return dict(module.build_info())


def versions() -> dict[str, str]:
    """Versions of everything that takes part; "target" is the oldest torch the libraries run on."""
    built = build_info("_C")
    return {
        "sparse-kernels": __version__,
        "python": platform.python_version(),
        "torch running": torch.__version__,
        "torch built with": built.get("torch", "?") if isinstance(built, dict) else "nothing built",
        "torch target": TARGET_TORCH,
        "torch's CUDA": torch.version.cuda or "none (CPU build)",
        "CUDA device": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "triton": _triton_version(),
    }


def backend_rows(device: str, dtype: torch.dtype = torch.float32) -> list[tuple[str, str, str]]:
    """(op, backend that ``auto`` picks, why not an earlier choice) for tensors on ``device``."""
    order = _backend.preferences(device)
    rows = []
    for op in OPS:
        reasons = {b: why for b, ok, why in _backend.explain(op, device, dtype) if not ok}
        chosen = next(b for b in order if b not in reasons)
        passed_over = [f"{b}: {reasons[b]}" for b in order[: order.index(chosen)]]
        rows.append((op, chosen, "; ".join(passed_over) or "first choice"))
    return rows


def report() -> str:
    """The text that ``python -m sparse_kernels.info`` prints."""
    lines = [f"{name:18}{value}" for name, value in versions().items()]
    for name in ("_C", "_C_cuda"):
        info = build_info(name)
        lines.append("")
        if isinstance(info, str):
            lines.append(f"sparse_kernels.{name} {info}")
            continue
        lines.append(f"sparse_kernels.{name}")
        lines += [f"  {key:16}{value}" for key, value in info.items()]
    for device in DEVICES:
        lines += ["", f"backend per operation on {device} tensors (float32)"]
        if device == "cuda" and not torch.cuda.is_available():
            lines[-1] += ", no CUDA device here"
        lines += [f"  {op:18}{chosen:11}{why}" for op, chosen, why in backend_rows(device)]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Print the report."""
    argparse.ArgumentParser(prog="python -m sparse_kernels.info", description=__doc__).parse_args(
        arguments
    )
    print(report())
    return 0


if __name__ == "__main__":
    sys.exit(main())
