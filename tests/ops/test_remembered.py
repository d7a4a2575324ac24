"""Kernel spectra kept for inference: equal outputs whatever happens to the weight, and bounded memory."""
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from mmlk.ops import DepthwiseConv2d, choice, depthwise_conv2d
from mmlk.ops.backends import ConvProblem, get, remembered
from mmlk.ops.reference import depthwise_conv2d_reference
from tests.utils import relative_error

SPECTRAL = ('dft', 'fft', 'fft_pairs')


@pytest.fixture(autouse=True)
def forgotten():
    remembered.forget()
    yield
    remembered.forget()


def held():
    return [entry for entry in remembered._spectra.values() if entry.spectra]


@pytest.mark.parametrize('backend', SPECTRAL)
def test_every_change_of_the_weight_is_noticed(backend):
    x, weight = torch.randn(2, 4, 24, 24), torch.randn(4, 1, 13, 13)
    changes = [lambda: None, lambda: None, lambda: None, lambda: weight.mul_(2), lambda: weight.data.add_(1),
               lambda: weight.numpy().fill(0.5), lambda: weight.data.copy_(torch.randn(4, 1, 13, 13)), lambda: None]
    for change in changes:
        change()
        with torch.no_grad():
            out = depthwise_conv2d(x, weight, backend=backend)
        assert relative_error(out, depthwise_conv2d_reference(x, weight)) < 2e-6
        problem = ConvProblem.of(x, weight)
        assert torch.equal(out, get(backend, problem).forward(x, weight, None, problem))
    assert len(held()) == 1


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32, torch.float64])
def test_changes_without_a_trace_that_leave_sums_as_they_were(dtype):
    """Mirrored, permuted and exchanged taps and channels, and a little more in one tap."""
    weight = torch.randn(8, 1, 31, 31).to(dtype)
    changes = [weight.flip(-1), weight.flip(-2), weight.mT.clone(), weight.roll(1, -1), weight.roll(1, 0), -weight]
    for tap in torch.randint(31 * 31, (20, )).tolist():
        changes.append(weight.clone())
        changes[-1][3].view(-1)[tap] += 0.0625 if dtype == torch.bfloat16 else 1e-3
    marks = remembered._marks(weight)
    assert torch.equal(marks, remembered._marks(weight))
    assert not any(torch.equal(marks, remembered._marks(changed)) for changed in changes)


def test_a_change_that_leaves_a_trace_is_noticed_whatever_its_projections(monkeypatch):
    monkeypatch.setattr(remembered, '_marks', lambda weight: torch.zeros(2, 4))
    x, weight = torch.randn(1, 4, 24, 24), torch.randn(4, 1, 13, 13)
    for change in (lambda: None, lambda: None, lambda: weight.mul_(2), lambda: weight[0].zero_()):
        change()
        out = depthwise_conv2d(x, weight, backend='fft')
        assert relative_error(out, depthwise_conv2d_reference(x, weight)) < 2e-6


def test_a_weight_in_the_place_of_another_is_not_taken_for_it():
    x, weight = torch.randn(1, 4, 24, 24), torch.randn(2, 4, 1, 13, 13)
    for values in weight:  # one after the other at the same address
        place = weight[0].clone().copy_(values)
        for _ in range(3):
            out = depthwise_conv2d(x, place, backend='fft')
            assert relative_error(out, depthwise_conv2d_reference(x, values)) < 2e-6
        del place


@pytest.mark.parametrize('backend', SPECTRAL)
def test_kept_from_the_second_meeting_on_and_then_not_taken_again(backend, monkeypatch):
    x, conv = torch.randn(2, 4, 24, 24), DepthwiseConv2d(4, 13)
    taken = []
    plan = type(get(backend, ConvProblem.of(x, conv.weight)).plan(ConvProblem.of(x, conv.weight)))
    of_kernel = plan.of_kernel
    monkeypatch.setattr(plan, 'of_kernel', lambda self, weight: taken.append(1) or of_kernel(self, weight))
    for calls, times in ((1, 1), (1, 2), (3, 2)):
        for _ in range(calls):
            with torch.no_grad():
                depthwise_conv2d(x, conv.weight, conv.bias, backend=backend)
        assert len(taken) == times
    taken.clear()
    for _ in range(3):  # while it learns, nothing is kept
        depthwise_conv2d(x, conv.weight, conv.bias, backend=backend)
    assert len(taken) == 3


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_under_autocast_the_parameter_is_the_key(monkeypatch, dtype):
    x, convs, made = torch.randn(1, 4, 24, 24), [DepthwiseConv2d(4, 13) for _ in range(4)], []
    plan = type(get('fft', ConvProblem.of(x, convs[0].weight)).plan(ConvProblem.of(x, convs[0].weight)))
    of_kernel = plan.of_kernel
    monkeypatch.setattr(plan, 'of_kernel', lambda self, weight: made.append(1) or of_kernel(self, weight))
    with torch.no_grad(), torch.autocast('cpu', dtype=dtype):
        for _image in range(30):
            outs = [depthwise_conv2d(x, conv.weight, conv.bias, backend='fft') for conv in convs]
        assert len(made) == 8 and len(held()) == 4  # of 120 look-ups 112 hit
        convs[0].weight.data.mul_(2)
        out = depthwise_conv2d(x, convs[0].weight, convs[0].bias, backend='fft')
        double = 2 * (outs[0].double() - convs[0].bias[:, None, None]) + convs[0].bias[:, None, None]
        assert relative_error(out, double) < 2e-2


@pytest.mark.parametrize('autocast', [False, True])
def test_nothing_is_held_of_a_weight_that_is_being_trained(autocast):
    conv, x = DepthwiseConv2d(4, 13), torch.randn(2, 4, 24, 24, requires_grad=True)
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.1)

    def block(x):
        return depthwise_conv2d(x, conv.weight, conv.bias, backend='fft')

    for step in range(6):
        with torch.autocast('cpu', enabled=autocast):
            out = checkpoint(block, x, use_reentrant=True)  # its forward pass is one without gradients
        assert not held()
        out.float().square().mean().backward()
        if step % 2:  # of the gradients of two steps
            optimizer.step()
            optimizer.zero_grad()
        assert not held()
    with torch.no_grad():
        for _ in range(2):
            block(x)
        assert len(held()) == 1
        for _ in range(4):  # the average of a weight that is being trained
            conv.weight.mul_(0.9)
            block(x)
            assert not held()
        for _ in range(2):
            block(x)
    assert len(held()) == 1
    block(x)  # a validation is over
    assert not held()


def test_weights_that_are_made_anew_hold_nothing():
    x, weight = torch.randn(1, 4, 24, 24), torch.randn(4, 1, 13, 13)
    for _ in range(6):
        depthwise_conv2d(x, weight * 2, backend='fft')
    assert not held() and len(remembered._keys) == len({key[-1] for key in remembered._spectra})


def test_who_lost_a_race_holds_nothing(monkeypatch):
    monkeypatch.setattr(choice, '_state', choice._State())
    x, conv = torch.randn(2, 4, 40, 40), DepthwiseConv2d(4, 31)
    worth = [backend for cost, backend in choice.candidates('inference', ConvProblem.of(x, conv.weight))]
    assert sum(backend.name in SPECTRAL for backend in worth) == 2
    monkeypatch.setattr(choice, '_MAX_COST_RATIO', 1e9)
    with torch.no_grad():
        for _ in range(4):
            conv(x)
        winner = choice.choose('inference', ConvProblem.of(x, conv.weight))[0].name
    assert [key[0] for key, entry in remembered._spectra.items() if entry.spectra] == [winner] * (winner in SPECTRAL)


def test_images_of_ever_new_sizes_hold_nothing():
    weight = torch.randn(4, 1, 13, 13)
    for size in range(16, 32):
        depthwise_conv2d(torch.randn(1, 4, size, 24), weight, backend='fft')
    assert not held()


def test_bounded_in_bytes_and_entries(monkeypatch):
    x, weights = torch.randn(1, 4, 24, 24), [torch.randn(4, 1, 13, 13) for _ in range(6)]
    for weight in weights[:1]:
        for _ in range(2):
            depthwise_conv2d(x, weight, backend='fft')
    one = remembered._size(held()[0])
    assert one > weights[0].numel() * 4
    monkeypatch.setattr(remembered, '_MAX_BYTES', 3 * one)
    for weight in weights:
        for _ in range(3):
            depthwise_conv2d(x, weight, backend='fft')
    assert len(held()) == 3
    assert all(torch.equal(entry.marks, remembered._marks(weight)) for entry, weight in zip(held(), weights[3:]))
    monkeypatch.setattr(remembered, '_MAX_ENTRIES', 2)
    depthwise_conv2d(x, weights[0], backend='fft')
    assert len(remembered._spectra) == 2


def test_weights_that_are_not_finite_do_not_stay_in_memory_for_good():
    x, weight = torch.randn(1, 4, 24, 24), torch.full((4, 1, 13, 13), float('nan'))
    for _ in range(4):
        assert depthwise_conv2d(x, weight, backend='fft').isnan().all()
    weight.fill_(1)
    assert relative_error(depthwise_conv2d(x, weight, backend='fft'), depthwise_conv2d_reference(x, weight)) < 2e-6
