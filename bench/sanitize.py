"""Every op once on small CUDA tensors, for compute-sanitizer: chunk edges, masked, misaligned."""

from __future__ import annotations

import torch

import sparse_kernels as sk

SIZES = (0, 1, 7, 65535, 65536, 65537)


def main(device: str = "cuda") -> None:
    base = [torch.randn(n + 1, device=device) for n in SIZES]
    for tensors in ([b[1:] for b in base], [b[1:].clone() for b in base]):  # misaligned, aligned
        grads = [torch.randn_like(t) for t in tensors]
        masks = sk.pack_mask([g > 0 for g in grads])
        sk.unpack_mask(masks, [t.shape for t in tensors])
        backup = [torch.empty_like(t) for t in tensors]
        for mask in (None, masks):
            norm = sk.grad_norm(grads, mask, weights=tensors, eta=0.1)
            sk.masked_perturb_(tensors, grads, norm, 0.1, mask, backup, True, eta=0.1)
            sk.restore_(tensors, backup, mask)
            state = [[torch.zeros_like(t) for t in tensors] for _ in range(4)]
            counts = [torch.zeros_like(t, dtype=torch.int32) for t in tensors]
            sk.linbreg_step_(tensors, grads, state[0], 0.1, 0.5, 1.0, 0.9, state[1], active=mask)
            sk.adabreg_step_(
                tensors, grads, *state[:1], *state[2:], 0.1, 0.5, step=1, counts=counts, active=mask
            )
            for distribution in ("normal", "rademacher"):
                drawn = {"seed": 3, "distribution": distribution, "mask": mask}
                sumsq = torch.zeros((), dtype=torch.float64, device=device)
                sk.zo_combine_(tensors, [0.1, 0.2], **drawn, backup=backup, sumsq=sumsq)
                sk.zo_norm2(tensors, [0.1, 0.2], **drawn)
                sk.zo_gram(tensors, 2, **drawn)
    torch.cuda.synchronize()
    print("done")


if __name__ == "__main__":
    main()
