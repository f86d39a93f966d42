"""Parameter lists of whole models, written from their published architectures.

    python -m bench.model_shapes        rewrite bench/shapes/*.json

A weight that two layers share is listed once. ``TOTALS`` are the parameter counts that the sources
state.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

Shape = tuple[int, ...]
Named = Iterator[tuple[str, Shape]]
FOLDER = Path(__file__).resolve().parent / "shapes"
TOTALS = {
    "resnet50": 25_557_032, "vit_b_16": 86_567_656, "gpt2": 124_439_808,
    "tinyllama_1b": 1_100_048_384,
}  # fmt: skip
MODELS = tuple(TOTALS)
SOURCES = {
    "resnet50": "ResNet-50, arXiv 1512.03385, with the stride in the 3x3 layers as in torchvision",
    "vit_b_16": "ViT-B/16 for 224 x 224 and 1,000 classes, arXiv 2010.11929, as in torchvision",
    "gpt2": "GPT-2 with 124M parameters (openai/gpt-2), output layer tied to the embedding",
    "tinyllama_1b": "TinyLlama 1.1B, arXiv 2401.02385, output layer not tied",
}


def _affine(name: str, width: int) -> Named:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _linear(name: str, outputs: int, inputs: int) -> Named:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def resnet50() -> Named:
    yield "conv1.weight", (64, 3, 7, 7)
    yield from _affine("bn1", 64)
    inputs = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
        for b in range(blocks):
            name = f"layer{stage}.{b}"
            layers = ((width, inputs, 1), (width, width, 3), (4 * width, width, 1))
            for i, (out, into, kernel) in enumerate(layers, start=1):
                yield f"{name}.conv{i}.weight", (out, into, kernel, kernel)
                yield from _affine(f"{name}.bn{i}", out)
            if b == 0:
                yield f"{name}.downsample.0.weight", (4 * width, inputs, 1, 1)
                yield from _affine(f"{name}.downsample.1", 4 * width)
            inputs = 4 * width
    yield from _linear("fc", 1000, inputs)


def vit_b_16() -> Named:
    width, hidden, classes, patch = 768, 3072, 1000, 16
    yield "class_token", (1, 1, width)
    yield "conv_proj.weight", (width, 3, patch, patch)
    yield "conv_proj.bias", (width,)
    yield "encoder.pos_embedding", (1, (224 // patch) ** 2 + 1, width)
    for i in range(12):
        name = f"encoder.layers.{i}"
        yield from _affine(f"{name}.ln_1", width)
        yield f"{name}.self_attention.in_proj_weight", (3 * width, width)
        yield f"{name}.self_attention.in_proj_bias", (3 * width,)
        yield from _linear(f"{name}.self_attention.out_proj", width, width)
        yield from _affine(f"{name}.ln_2", width)
        yield from _linear(f"{name}.mlp.0", hidden, width)
        yield from _linear(f"{name}.mlp.3", width, hidden)
    yield from _affine("encoder.ln", width)
    yield from _linear("heads.head", classes, width)


def gpt2() -> Named:
    """Its layers store weights as (inputs, outputs)."""
    width, vocabulary, context = 768, 50257, 1024
    yield "wte.weight", (vocabulary, width)
    yield "wpe.weight", (context, width)
    for i in range(12):
        for name, inputs, outputs in (
            ("attn.c_attn", width, 3 * width), ("attn.c_proj", width, width),
            ("mlp.c_fc", width, 4 * width), ("mlp.c_proj", 4 * width, width),
        ):  # fmt: skip
            if name in ("attn.c_attn", "mlp.c_fc"):
                yield from _affine(f"h.{i}.ln_{1 if name.startswith('attn') else 2}", width)
            yield f"h.{i}.{name}.weight", (inputs, outputs)
            yield f"h.{i}.{name}.bias", (outputs,)
    yield from _affine("ln_f", width)


def tinyllama_1b() -> Named:
    width, hidden, vocabulary, keys = 2048, 5632, 32000, 256  # 4 heads of 64 for keys and values
    yield "embed_tokens.weight", (vocabulary, width)
    for i in range(22):
        for name, outputs in (("q", width), ("k", keys), ("v", keys), ("o", width)):
            yield f"layers.{i}.self_attn.{name}_proj.weight", (outputs, width)
        yield f"layers.{i}.mlp.gate_proj.weight", (hidden, width)
        yield f"layers.{i}.mlp.up_proj.weight", (hidden, width)
        yield f"layers.{i}.mlp.down_proj.weight", (width, hidden)
        yield f"layers.{i}.input_layernorm.weight", (width,)
        yield f"layers.{i}.post_attention_layernorm.weight", (width,)
    yield "norm.weight", (width,)
    yield "lm_head.weight", (vocabulary, width)


def total(shapes: list[Shape]) -> int:
    return sum(math.prod(s) for s in shapes)


def clipped(shapes: list[Shape], longest: int) -> list[Shape]:
    """As many tensors of as many dimensions, none of which is longer."""
    return [tuple(min(n, longest) for n in s) for s in shapes]


def document(model: str) -> str:
    """The JSON text of a model, one tensor per line."""
    tensors = [{"name": n, "shape": list(s)} for n, s in globals()[model]()]
    count = total([tuple(t["shape"]) for t in tensors])
    if count != TOTALS[model]:
        raise ValueError(f"{model}: {count} parameters, its source says {TOTALS[model]}")
    lines = ",\n".join("  " + json.dumps(t) for t in tensors)
    head = f'"model": {json.dumps(model)},\n"source": {json.dumps(SOURCES[model])},\n'
    return f'{{\n{head}"parameters": {count},\n"tensors": [\n{lines}\n]\n}}\n'


def load(model: str) -> list[Shape]:
    """Shapes of a stored model."""
    stored = json.loads((FOLDER / f"{model}.json").read_text())
    return [tuple(t["shape"]) for t in stored["tensors"]]


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    for model in MODELS:
        (FOLDER / f"{model}.json").write_text(document(model))
    return 0


if __name__ == "__main__":
    sys.exit(main())
