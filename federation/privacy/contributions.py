"""How far real subjects moved a step's sum: the clip, seen from outside the code that clips."""

from collections.abc import Sequence

import torch

# What is added to a norm before the clip divides by it (Opacus's formula).
_OPACUS_EPSILON = 1e-6
_TOLERANCE = 1e-3


def moved_too_far(
    sums: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor], clip_norm: float
) -> bool:
    """Tell whether a step's first subjects moved its sum by anything else than clipping leaves.

    The sum must be what clipping each of them, worked out here once more, adds up to.

    Args:
        sums: The step's sum of each parameter, float64: zero before these subjects.
        gradients: As they were before any clip, (subjects, *shape) for each parameter.
    """
    norms = norms_of(gradients)
    counted = norms.isfinite()
    factors = (clip_norm / (norms[counted] + _OPACUS_EPSILON)).clamp(max=1.0)
    rows = [gradient.reshape(len(gradient), -1)[counted] for gradient in gradients]
    expected = [row.double().T.mv(factors) for row in rows]
    differences = [s.reshape(-1) - e for s, e in zip(sums, expected, strict=True)]
    return not _norm(differences) <= clip_norm * _TOLERANCE


def longer_than(gradients: Sequence[torch.Tensor], clip_norm: float) -> bool:
    """Tell whether the clip had to act: somebody's gradient was longer, and finite."""
    norms = norms_of(gradients)
    return bool((norms.isfinite() & (norms > clip_norm)).any())


def norms_of(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return each subject's L2 norm over all tensors together, float64 (subjects,)."""
    rows = [gradient.reshape(len(gradient), -1) for gradient in gradients]
    return torch.stack([row.norm(dim=1, dtype=torch.float64) for row in rows]).norm(dim=0)


def _norm(tensors: Sequence[torch.Tensor]) -> float:
    return float(torch.stack([tensor.norm() for tensor in tensors]).norm())
