"""Writes the README's tables from stored results, so that it quotes nothing else.

    python -m bench.tables            rewrite the blocks between the markers
    python -m bench.tables --check    exit code 1 if a block differs from its results

A block begins with ``<!-- table KIND PATH -->``, KIND one of ``COLUMNS``, and ends with
``<!-- end -->``. Columns without a value are left out; a file that is not there yet is said to be
missing.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from pathlib import Path

BLOCK = re.compile(r"(<!-- table (\w+) (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
ROOT = Path(__file__).resolve().parent.parent

_STEP = {"op": ("step", "{}")}
_TIME = {"p50_ms": ("ms", "{:.2f}"), "bytes_per_element": ("bytes per weight", "{:g}")}
_ROOFS = {
    "gb_per_s": ("GB/s", "{:.1f}"),
    "percent_of_roof": ("% in place", "{:.0f}"),
    "percent_of_streams": ("% of the same streams", "{:.0f}"),
}
_RATIOS = {
    "x_eager": ("x eager", "{:.1f}"),
    "target": ("promised", "{:g}"),
    "x_compile": ("x torch.compile", "{:.1f}"),
}
_TORCH = {
    "torch_step": ("torch's own", "{}"),
    "x_foreach": ("x foreach", "{:.1f}"),
    "x_fused": ("x fused", "{:.1f}"),
}

#: column of the CSV -> (heading, format); "" stands for a missing value
COLUMNS: dict[str, dict[str, tuple[str, str]]] = {
    "bench": _STEP | _TIME | _ROOFS | _RATIOS | _TORCH,
    "bregman": _STEP | _TIME | _ROOFS | _RATIOS | _TORCH | {"x_dense": ("x dense step", "{:.1f}")},
    "zo": _STEP
    | {
        "dtype": ("dtype", "{}"),
        "q": ("directions", "{}"),
    }
    | _TIME
    | {
        "percent_of_roof": _ROOFS["percent_of_roof"],
        "percent_of_streams": _ROOFS["percent_of_streams"],
        "gdirections_per_s": ("G directions/s", "{:.2f}"),
        "eager_gdirections_per_s": ("eager", "{:.2f}"),
        "compile_gdirections_per_s": ("torch.compile", "{:.2f}"),
    }
    | _RATIOS,
    "host": {
        "list": ("tensors", "{}"),
        "op": ("step", "{}"),
        "host_us": ("us per call", "{:.0f}"),
        "host_us_per_tensor": ("us per tensor", "{:.2f}"),
        "host_us_above_memory": ("us above memory", "{:.0f}"),
        "target_host_us": ("promised", "< {:g}"),
        "torch_step": ("torch's own", "{}"),
        "foreach_host_us_above_memory": ("foreach, us above", "{:.0f}"),
        "fused_host_us_above_memory": ("fused, us above", "{:.0f}"),
        "first_host_us_above_memory": ("first call, us above", "{:.0f}"),
        "fused_first_host_us_above_memory": ("fused, first call", "{:.0f}"),
    },
    "models": {"list": ("model", "{}")} | _STEP | _TIME | _ROOFS | _RATIOS | _TORCH,
    "demo": {
        "model": ("model", "{}"),
        "method": ("method", "{}"),
        "test_accuracy_percent": ("test accuracy %", "{:.1f}"),
        "weight_sparsity_percent": ("weight sparsity %", "{:.1f}"),
        "training_flops_percent": ("training FLOPs %", "{:.1f}"),
        "optimizer_ms_reference": ("reference ms", "{:.3f}"),
        "optimizer_ms_fused": ("fused ms", "{:.3f}"),
        "ratio": ("ratio", "{:.1f}"),
        "max_difference_20_steps": ("difference, 20 steps", "{:.1g}"),
    },
    "study": {
        "method": ("method", "{}"),
        "sparsity_percent": ("sparsity %", "{:g}"),
        "perturbed_percent": ("perturbed %", "{:.1f}"),
        "test_accuracy_percent_mean": ("test accuracy %, mean", "{:.2f}"),
        "test_accuracy_percent_deviation": ("deviation", "{:.2f}"),
        "seeds": ("seeds", "{}"),
    },
    "zo_speed": {
        "sparse_method": ("masks", "{}"),
        "method": ("method", "{}"),
        "ms_per_step": ("ms per step", "{:.2f}"),
        "images_per_second": ("images/s", "{:.0f}"),
        "percent_of_sgd": ("% of SGD", "{:.1f}"),
        "estimate_percent_of_sgd": ("estimate", "{:.1f}"),
        "published_percent_of_sgd": ("published", "{:.1f}"),
    },
    "zo_differences": {
        "part": ("budget", "{}"),
        "method": ("method", "{}"),
        "against": ("minus", "{}"),
        "pairs": ("pairs", "{}"),
        "difference_mean": ("test accuracy, points", "{:+.2f}"),
        "difference_error": ("error", "{:.2f}"),
        "difference_median": ("median", "{:+.2f}"),
        "better": ("better", "{}"),
        "worse": ("worse", "{}"),
        "corrupted_difference_mean": ("corrupted, points", "{:+.2f}"),
        "corrupted_difference_error": ("error", "{:.2f}"),
    },
    "zo_accuracy": {
        "part": ("budget", "{}"),
        "sparse_method": ("masks", "{}"),
        "sparsity_percent": ("zero weights %", "{:g}"),
        "method": ("method", "{}"),
        "rho": ("rho", "{:g}"),
        "steps": ("steps", "{}"),
        "test_accuracy_percent_mean": ("test accuracy %, mean", "{:.2f}"),
        "test_accuracy_percent_deviation": ("deviation", "{:.2f}"),
        "corrupted_accuracy_percent_mean": ("corrupted, mean", "{:.2f}"),
        "corrupted_accuracy_percent_deviation": ("deviation", "{:.2f}"),
        "seeds": ("seeds", "{}"),
    },
    "zo_cosine": {
        "stage": ("weights", "{}"),
        "distribution": ("distribution", "{}"),
        "directions": ("directions", "{}"),
        "cosine_mean": ("cosine, mean", "{:.5f}"),
        "cosine_error": ("error", "{:.5f}"),
        "cosine_theory": ("theory", "{:.5f}"),
        "sign_agreement_percent": ("signs right %", "{:.1f}"),
        "tie_percent": ("ties %", "{:.1f}"),
    },
    "mezo": {
        "method": ("method", "{}"),
        "seed": ("seed", "{}"),
        "moved_percent": ("% of weights moved", "{:g}"),
        "bits_per_character_before": ("bits per character before", "{:.3f}"),
        "bits_per_character_after": ("after", "{:.3f}"),
        "ms_per_step": ("ms per step", "{:.0f}"),
        "ms_outside_forwards": ("ms outside the forwards", "{:.1f}"),
        "added_bytes_step": ("bytes added by a step", "{:.3g}"),
        "added_bytes_forward": ("by a forward", "{:.3g}"),
    },
    "bregman_methods": {
        "method": ("method", "{}"),
        "sparsity_target_percent": ("sparsity %", "{:g}"),
        "test_accuracy_percent_mean": ("test accuracy %, mean", "{:.2f}"),
        "test_accuracy_percent_deviation": ("deviation", "{:.2f}"),
        "bits_per_character_mean": ("bits per character, mean", "{:.3f}"),
        "bits_per_character_deviation": ("deviation", "{:.3f}"),
        "weight_sparsity_percent": ("zero weights %", "{:.2f}"),
        "theoretical_flops_percent": ("FLOPs %, theory", "{:.1f}"),
        "issued_flops_percent": ("FLOPs %, issued", "{:.1f}"),
        "training_seconds": ("seconds", "{:.1f}"),
        "optimizer_ms_per_step": ("optimizer ms per step", "{:.2f}"),
        "seeds": ("seeds", "{}"),
    },
    "bregman_sensitivity": {
        "coarse_steps": ("m", "{}"),
        "lam": ("lam", "{:g}"),
        "test_accuracy_percent_mean": ("test accuracy %, mean", "{:.2f}"),
        "weight_sparsity_percent": ("zero weights %", "{:.1f}"),
        "theoretical_flops_percent": ("FLOPs %, theory", "{:.1f}"),
        "seeds": ("seeds", "{}"),
    },
    "methods": {
        "method": ("method", "{}"),
        "weight_sparsity_percent": ("zero weights %", "{:.1f}"),
        "test_accuracy_percent_mean": ("test accuracy %, mean", "{:.2f}"),
        "test_accuracy_percent_deviation": ("deviation", "{:.2f}"),
        "seeds": ("seeds", "{}"),
    },
}


def cell(form: str, text: str) -> str:
    if text == "":
        return "-"
    return form.format(text if form == "{}" else float(text))


def table(kind: str, path: Path) -> str:
    """Markdown table of a stored CSV, and one line that says where the numbers are from."""
    if not path.exists():
        return f"No results are stored in `{path.relative_to(ROOT)}` yet.\n"
    with path.open(newline="") as f:
        rows = list(csv.DictReader(f))
    shown = COLUMNS[kind].items()
    columns = {name: how for name, how in shown if any(row.get(name) for row in rows)}
    lines = ["| " + " | ".join(h for h, _ in columns.values()) + " |"]
    lines.append("|" + "---|" * len(columns))
    for row in rows:
        cells = (cell(form, row[name]) for name, (_, form) in columns.items())
        lines.append("| " + " | ".join(cells) + " |")
    facts = [f"{k} {rows[0][k]}" for k in ("machine", "torch", "commit", "date") if rows[0].get(k)]
    source = f"`{path.relative_to(ROOT)}`" + (": " + ", ".join(facts) if facts else "")
    command = f", `{rows[0]['command']}`" if rows[0].get("command") else ""
    return "\n".join(lines) + f"\n\nFrom {source}{command}.\n"


def render(text: str) -> str:
    return BLOCK.sub(lambda m: m[1] + table(m[2], ROOT / m[3]) + m[5], text)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tables", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    args = parser.parse_args(argv)
    readme = ROOT / "README.md"
    old = readme.read_text()
    new = render(old)
    if args.check:
        if new != old:
            print("README.md differs from the stored results; run python -m bench.tables")
        return int(new != old)
    readme.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
