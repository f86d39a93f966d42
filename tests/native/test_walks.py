"""The names of kernels in the budget and in what the harness prints."""

from __future__ import annotations

import pytest
from walks import check_walks, family_of, kernels, walks_of


def test_families():
    """Names of both sides meet, and what they share is all that is dropped."""
    for kernel, program in (
        (
            "Packed<Restore<unsigned int>> masked",
            "sk::phases::Packed<sk::Restore<unsigned short> >",
        ),
        ("histogram_kernel<ScoreKeys<bf16>>", "histogram_kernel sk::phases::Ranked<sk::ScoreKeys<"),
        ("gram_kernel<true, Signs>", "gram_kernel sk::phases::Gram<sk::phases::Signs>"),
    ):
        end = {"Packed": " masked", "histog": "float> >", "gram_k": " masked"}[kernel[:6]]
        assert family_of(kernel) == family_of(program + end)
    assert family_of("gram_kernel<false, Signs>") != family_of("gram_kernel<true, Signs>")
    assert family_of("index_kernel") == family_of("index_kernel sk::phases::MaskIndex")
    names = ("LinBregStep<float, (Dual)1, true, true>", "LinBregStep<bf16, (Dual)0, true, true>")
    assert family_of(names[0]) != family_of(names[1])
    assert len(kernels()) > 90


def test_what_is_missing_is_named():
    complete = "\n".join(f"ran {k}: vector tail misaligned tables" for k in sorted(kernels()))
    assert walks_of(complete).keys() == kernels()
    check_walks(complete)
    with pytest.raises(AssertionError, match="no program of the harness"):
        check_walks(complete.partition("\n")[2])
    with pytest.raises(AssertionError, match="SquaredNorm<T> went through"):
        check_walks(complete.replace("SquaredNorm<T>: vector tail", "SquaredNorm<T>: tail"))
