"""How the operations' tests compare numbers."""

from __future__ import annotations

from torch import Tensor


def relative_error(out: Tensor, truth: Tensor) -> float:
    """||out - truth|| / ||truth||, in float64; NaN where there is one, which no bound passes."""
    out, truth = out.detach().cpu().double(), truth.detach().cpu().double()
    return ((out - truth).norm() / truth.norm()).item()


def assert_close_to_truth(out: Tensor, truth: Tensor, bound: float = 1e-5) -> None:
    assert out.shape == truth.shape
    error = relative_error(out, truth)
    assert error <= bound, f"relative error {error:.1e} over {bound:.0e}"


def assert_no_worse(
    out: Tensor, plain: Tensor, truth: Tensor, *, factor: float = 2.0, floor: float = 1e-6
) -> None:
    """`out` errs at most `factor` times as much as `plain`, torch's own result in that dtype.

    `floor` is what float32 rounding alone may cost where `plain` happens to be exact.
    """
    assert out.shape == truth.shape
    error, allowed = relative_error(out, truth), factor * relative_error(plain, truth) + floor
    assert error <= allowed, f"relative error {error:.1e} over {allowed:.1e}"
