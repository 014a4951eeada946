from __future__ import annotations

import math

import torch

from bananagrams_assets.learn.losses import mask_loss


def test_invalid_pixels_do_not_change_loss_or_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 8, 8, generator=generator, requires_grad=True)
    truth = (torch.rand(2, 1, 8, 8, generator=generator) > 0.5).to(torch.uint8)
    valid = torch.ones(2, 1, 8, 8, dtype=torch.uint8)
    valid[..., 4:] = 0
    other = truth.clone()
    other[..., 4:] = 1 - other[..., 4:]
    first, second = mask_loss(logits, truth, valid), mask_loss(logits, other, valid)
    assert torch.equal(first, second)
    first.sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert not logits.grad[..., 4:].any()
    assert logits.grad[..., :4].all()


def test_cross_entropy_is_the_mean_over_valid_pixels() -> None:
    valid = torch.zeros(1, 1, 4, 4)
    valid[..., 0, 0] = 1
    loss = mask_loss(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4), valid, 1, 0)
    assert math.isclose(loss.item(), math.log(2), rel_tol=1e-6)


def test_dice_of_a_confident_prediction_is_0_if_correct_and_near_1_if_wrong() -> None:
    truth = torch.zeros(1, 1, 16, 16)
    truth[..., :8] = 1
    confident = (truth * 2 - 1) * 100
    ones = torch.ones_like(truth)
    assert mask_loss(confident, truth, ones, 0, 1).item() == 0
    assert mask_loss(-confident, truth, ones, 0, 1).item() > 0.99


def test_an_empty_truth_rewards_an_empty_prediction() -> None:
    zeros, ones = torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    assert mask_loss(ones * -100, zeros, ones, 1, 1).item() < mask_loss(ones, zeros, ones, 1, 1).item()
    assert mask_loss(ones * -100, zeros, ones, 0, 1).item() == 0


def test_no_valid_pixels_give_zero_gradient() -> None:
    logits = torch.randn(1, 1, 4, 4, requires_grad=True)
    mask_loss(logits, torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert not logits.grad.any()


def test_optimal_prediction_of_half_edited_pixels_is_one_half() -> None:
    truth, ones = torch.full((1, 1, 4, 4), 0.5), torch.ones(1, 1, 4, 4)
    logits = torch.linspace(-3, 3, 61)
    losses = [mask_loss(torch.full((1, 1, 4, 4), float(x)), truth, ones).item() for x in logits]
    assert abs(logits[min(range(61), key=losses.__getitem__)]) < 0.11


def test_sample_loss_does_not_depend_on_the_rest_of_the_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 1, 8, 8, generator=generator)
    truth, valid = (torch.rand(3, 1, 8, 8, generator=generator) > 0.5 for _ in range(2))
    batched = mask_loss(logits, truth, valid)
    assert batched.shape == (3,)
    single = torch.cat([mask_loss(logits[i : i + 1], truth[i : i + 1], valid[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(batched, single)
