import pytest
import torch
from torch import nn

from federation.privacy.optimizers import UnbiasedAdam


def stepped(optimizer_of, gradients, start=1.0):
    parameter = nn.Parameter(torch.full((4,), start, dtype=torch.float64))
    optimizer = optimizer_of([parameter])
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def unbiased(**changes):
    values = {"learning_rate": 0.1, "noise_stddev": 0.0, "floor": 1e-20} | changes
    return lambda parameters: UnbiasedAdam(parameters, **values)


def gradients_of(steps, deviation=1.0, mean=0.0):
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn((steps, 4), generator=generator, dtype=torch.float64)
    return list(mean + deviation * draws)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_without_noise_it_is_torchs_own_adam(decay):
    gradients = gradients_of(20)
    own = stepped(lambda p: torch.optim.AdamW(p, lr=0.1, eps=0, weight_decay=decay), gradients)
    assert torch.allclose(stepped(unbiased(weight_decay=decay), gradients), own, atol=1e-12)


def test_the_second_moment_is_the_formula_of_the_paper():
    gradients = gradients_of(3)
    first = second = torch.zeros(4, dtype=torch.float64)
    value = torch.ones(4, dtype=torch.float64)
    for step, g in enumerate(gradients, start=1):
        first = 0.9 * first + 0.1 * g
        second = 0.999 * second + 0.001 * g**2
        corrected = second / (1 - 0.999**step) - 0.5**2
        value = value - 0.1 * (first / (1 - 0.9**step)) / corrected.clamp(min=1e-4).sqrt()
    found = stepped(unbiased(noise_stddev=0.5, floor=1e-4), gradients)
    assert torch.allclose(found, value, atol=1e-12)


def test_under_noise_its_steps_are_as_long_as_adams_without_and_plain_adams_are_not():
    """A small steady gradient under ten times as much noise: the paper's complaint and its cure."""
    steady = [torch.full((4,), 0.1, dtype=torch.float64)] * 2000
    noisy = [g + n for g, n in zip(steady, gradients_of(2000), strict=True)]
    honest = 1 - stepped(unbiased(), steady).mean()
    biased = 1 - stepped(unbiased(), noisy).mean()
    cured = 1 - stepped(unbiased(noise_stddev=1.0, floor=2.5e-3), noisy).mean()
    assert biased < 0.2 * honest
    assert cured > 2.5 * biased


def test_a_parameter_without_a_gradient_stays():
    parameter = nn.Parameter(torch.ones(3))
    UnbiasedAdam([parameter], learning_rate=0.1, noise_stddev=0, floor=1e-8).step()
    assert torch.equal(parameter, torch.ones(3))


def test_a_closure_is_refused():
    optimizer = unbiased()([nn.Parameter(torch.ones(1))])
    with pytest.raises(ValueError, match="takes no closure"):
        optimizer.step(lambda: 0.0)
