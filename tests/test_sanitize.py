"""The calls for compute-sanitizer: every public op is among them, and CPU tensors take them too."""

from __future__ import annotations

import sparse_kernels as sk
from bench import sanitize
from sparse_kernels import functional


def test_every_op_is_called(monkeypatch, capsys):
    called = set()

    def recorded(name):
        call = getattr(sk, name)

        def wrapper(*args, **kwargs):
            called.add(name)
            return call(*args, **kwargs)

        return wrapper

    # numbers from numbers, and tuples
    wanted = set(functional.__all__) - {"derive_key", "ProxStats", "Tiling"}
    for name in wanted:
        monkeypatch.setattr(sk, name, recorded(name))
    sanitize.main("cpu")
    assert called == wanted
    assert capsys.readouterr().out == "done\n"
