"""The README quotes stored results, and its examples run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from bench import tables

README = Path(__file__).resolve().parent.parent / "README.md"


def test_tables_are_those_of_the_stored_results():
    text = README.read_text()
    assert len(tables.BLOCK.findall(text)) == 15
    assert tables.render(text) == text


def test_a_changed_number_is_noticed():
    text = README.read_text()
    changed = text.replace("| linbreg |", "| linbreg | 0 |", 1)
    assert changed != text
    assert tables.render(changed) == text


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL))
def test_examples_run(code):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    start = [p.detach().clone() for p in model.parameters()]
    samples = [(torch.randn(4, 8), torch.randint(0, 3, (4,))) for _ in range(3)]
    names = {
        "torch": torch,
        "model": model,
        "samples": samples,
        "loader": samples,
        "loss_fn": torch.nn.functional.cross_entropy,
    }
    exec(code, names)
    assert any(not torch.equal(p, s) for p, s in zip(model.parameters(), start, strict=True))
