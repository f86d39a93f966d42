"""The closed form of the training FLOPs, and runs that must give it (bregman.md section 7, M8)."""

import pytest
import torch
from sparse_optim import AdaBreg, LinBreg, SparseFlops, bregman_param_groups, training_flops_ratio
from torch import nn

DENSITIES = [0.01, 0.02, 0.05, 0.057, 0.06, 0.07, 0.08, 0.10, 0.20, 0.50]
TABLE = {
    0: ".340 .347 .367 .371 .373 .380 .387 .400 .467 .667",
    99: ".0133 .0233 .0532 .0601 .0631 .0731 .0831 .103 .203 .502",
    9: ".0430 .0527 .0817 .0884 .0913 .101 .111 .130 .227 .517",
}
CASES = [
    (m, rho, text)
    for m, row in TABLE.items()
    for rho, text in zip(DENSITIES, row.split(), strict=True)
]


def printed(value, text):
    """A value with the digits of a text."""
    return f"{value:.{len(text) - 1}f}".removeprefix("0")


@pytest.mark.parametrize(("m", "rho", "text"), CASES)
def test_the_table_of_section_7(m, rho, text):
    assert printed(training_flops_ratio(rho, m), text) == text


@pytest.mark.parametrize("cls", [LinBreg, AdaBreg])
@pytest.mark.parametrize(("m", "rho", "text"), CASES)
def test_a_run_at_constant_density_gives_the_table(m, rho, text, cls):
    """lr 0 keeps the support; two whole cycles, counted step by step."""
    model = nn.Sequential(nn.Linear(50, 40), nn.ReLU(), nn.Linear(40, 25))
    with torch.no_grad():
        for layer, n in ((model[0], 2000), (model[2], 1000)):
            layer.weight.view(-1).copy_((torch.arange(n) < round(rho * n)).float())
    opt = cls(bregman_param_groups(model, lam=0.1), lr=0.0, coarse_steps=m)
    flops = SparseFlops(model, torch.zeros(1, 50), opt)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    for _ in range(2 * (m + 1)):
        opt.step()
        flops.step(3)
    report = flops.report()
    live = round(rho * 3000)
    assert report["theoretical_flops"] == 2 * 3 * 2 * (m * 3 * live + 2 * live + 3000)
    ratio = report["theoretical_flops"] / report["dense_flops"]
    assert printed(ratio, text) == text
    assert ratio == pytest.approx(training_flops_ratio(rho, m), rel=1e-14)
    assert report["coarse_steps"] == 2 * m


def test_published_figures_and_their_rounding():
    """38 % means a density of .0625 to .0775, 6 % with m = 99 one of .0518 to .0619."""
    assert round(100 * training_flops_ratio(0.07)) == 38
    assert round(100 * training_flops_ratio(0.057, 99)) == 6
    for m, figure, window in ((0, 0.38, (0.0625, 0.0775)), (99, 0.06, (0.0518, 0.0619))):
        for edge, half in zip(window, (-0.005, 0.005), strict=True):
            exact = (3 * (m + 1) * (figure + half) - 1) / (3 * m + 2)
            assert round(exact, 4) == edge
            assert training_flops_ratio(exact, m) == pytest.approx(figure + half)
            assert round(100 * training_flops_ratio(exact - half / 1e4, m)) == 100 * figure
            assert round(100 * training_flops_ratio(exact + half / 1e4, m)) != 100 * figure


def test_other_forms():
    for m in (0, 9, 99):
        assert training_flops_ratio(1.0, m) == pytest.approx(1.0)
        assert training_flops_ratio(0.0, m) == pytest.approx(1 / (3 * (m + 1)))
    assert training_flops_ratio(0.06, 99) == pytest.approx((299 * 0.06 + 1) / 300)
    assert training_flops_ratio(0.1, 9, 0.3) == pytest.approx((9 * (0.2 + 0.3) + 1.2) / 30)
    for bad in ({"density": 1.5}, {"density": 0.1, "coarse_steps": -1}):
        with pytest.raises(ValueError, match=r"density|coarse_steps"):
            training_flops_ratio(**bad)
