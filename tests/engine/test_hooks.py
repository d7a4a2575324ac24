import re
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel, BaseTTAModel
from mmengine.structures import BaseDataElement, PixelData
from torch import nn

from mmlk.engine import hooks as our_hooks
from mmlk.engine.hooks import BusyMachineHook, CheckLabelsHook
from mmlk.engine.network import network_of
from mmlk.ops import set_memory_format
from mmlk.registry import HOOKS
from mmlk.reparam import ReparamLargeKernel, merge
from tests.utils import fill, image, relative_error


def stock_model():
    model = nn.Module()
    model.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1))
    return model


def is_channels_last(x):
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


@pytest.mark.parametrize('memory_format, inference, training', [
    ('fastest', True, False), ('channels_last', True, True), ('contiguous', False, False)])
def test_memory_format_hook_on_a_stock_backbone(memory_format, inference, training):
    model, x = stock_model(), torch.randn(2, 3, 6, 5)
    expected, inside = model.backbone(x), []
    model.backbone[-1].register_forward_hook(lambda module, args, out: inside.append(is_channels_last(out)))
    hook = HOOKS.build(dict(type='mmlk.MemoryFormatHook', memory_format=memory_format))
    hook.before_run(SimpleNamespace(model=model))
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            out = model.backbone(x)
        assert torch.allclose(out, expected, atol=1e-5)
        assert out.is_contiguous(), 'for those who read it without its strides'
    assert inside == [inference, training]


def test_an_input_by_keyword_is_left_as_it_is():
    class Backbone(nn.Module):

        def forward(self, x):
            seen.append(is_channels_last(x))
            return x

    seen, backbone = [], Backbone()
    set_memory_format(backbone, 'channels_last')
    backbone(x=torch.zeros(1, 2, 3, 4))
    backbone(torch.zeros(1, 2, 3, 4))
    assert seen == [False, True]


@pytest.mark.parametrize('output_format', ['contiguous', 'channels_last'])
def test_outputs_are_in_the_format_that_their_consumer_asked_for(output_format):
    class Backbone(nn.Module):

        def forward(self, x):
            return [x, (x.contiguous(), dict(last=x.permute(0, 1, 3, 2))), x[..., 0], 'name']

    backbone, x = Backbone(), torch.randn(1, 2, 3, 4)
    set_memory_format(backbone, 'contiguous')
    set_memory_format(backbone, 'channels_last', output_format)  # the last call holds
    first, (second, third), vector, name = backbone(x)
    for out, expected in ((first, x), (second, x), (third['last'], x.permute(0, 1, 3, 2))):
        assert torch.equal(out, expected)
        assert is_channels_last(out) == (output_format == 'channels_last')
    assert torch.equal(vector, x[..., 0]) and name == 'name'
    assert len(backbone._forward_hooks) == len(backbone._forward_pre_hooks) == 1


def test_memory_format_hook_refuses():
    with pytest.raises(ValueError, match="contiguous, channels_last or fastest, got 'nhwc'"):
        HOOKS.build(dict(type='mmlk.MemoryFormatHook', memory_format='nhwc'))
    with pytest.raises(ValueError, match="output_format must be one of contiguous, channels_last, got 'fastest'"):
        set_memory_format(nn.Identity(), 'fastest', 'fastest')
    with pytest.raises(ValueError, match='Linear has none'):
        HOOKS.build(dict(type='mmlk.MemoryFormatHook')).before_run(SimpleNamespace(model=nn.Linear(1, 1)))


def test_the_network_is_found_in_any_wrappers():
    class Augmented(BaseTTAModel):
        def merge_preds(self, data_samples_list):
            return data_samples_list

    model = stock_model()
    model.test_step, model.module = None, nn.Identity()  # a module of its own of that name is no wrapper's
    for wrapped in (model, Augmented(model), nn.DataParallel(model), nn.DataParallel(Augmented(model))):
        assert network_of(wrapped) is model


class AveragesToo(EMAHook):
    """A hook of somebody's own."""


@pytest.mark.parametrize('averaging', [EMAHook, AveragesToo])
@pytest.mark.parametrize('update_buffers', [True, False])
def test_averaged_weights_are_what_is_merged(averaging, update_buffers):
    def block(seed):
        return fill(ReparamLargeKernel(4, 7, 3, nn.BatchNorm2d), seed)

    model, averaged, x = block(0), block(1), image(1, 4, 9, 9)
    hooks = [HOOKS.build(dict(type='mmlk.MergeBranchesHook')), averaging(update_buffers=update_buffers)]
    runner = SimpleNamespace(model=model, hooks=hooks, _hooks=hooks)
    hooks[1].before_run(runner)
    hooks[1].ema_model.module.load_state_dict(averaged.state_dict())
    if not update_buffers:  # the statistics stay those of the model itself
        averaged.load_state_dict({**averaged.state_dict(), **dict(model.named_buffers())})
    expected = merge(averaged)(x)
    for step in ('before_test', 'before_test_epoch'):
        for hook in runner._hooks:
            getattr(hook, step)(runner)
    assert model.merged and relative_error(model(x), expected) < 1e-6
    for hook in runner._hooks:
        hook.after_test_epoch(runner)
    assert relative_error(model(x), expected) < 1e-6


def test_memory_format_reaches_a_backbone_inside_test_time_augmentation():
    class Augmented(BaseTTAModel):

        def merge_preds(self, data_samples_list):
            return data_samples_list

    class Model(BaseModel):

        def forward(self, inputs, data_samples=None, mode='tensor'):
            return self.backbone(inputs)

    model = Model()
    model.backbone = nn.Conv2d(3, 3, 1)
    x, seen = torch.zeros(1, 3, 4, 5), []
    HOOKS.build(dict(type='mmlk.MemoryFormatHook', memory_format='channels_last')).before_run(
        SimpleNamespace(model=Augmented(module=model)))
    model.backbone.register_forward_pre_hook(lambda module, args: seen.append(is_channels_last(args[0])))
    assert model.backbone(x).is_contiguous() and seen == [True]


class Head(nn.Module):
    ignore_index = 255

    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes


@pytest.mark.parametrize('maps, classes, told', [
    ([[0, 255], [255, 0]], 2, 'hold label 0 and the ignored label 255 alone, of 2 classes'),
    ([[3, 255]], 150, r'hold label 3 and .* of 150 classes.*0 to 149'),
    ([[255, 255]], 2, 'hold the ignored label 255 alone'),  # masks of 0 and 255, with reduce_zero_label
    ([[0, 255]] * 6 + [[1, 255]], 2, None),
    ([[0, 0]], 2, None),  # the class may be a rare one
    ([[0, 1, 255]], 2, None), ([[0, 255]], 1, None),
])
@pytest.mark.parametrize('mode, iterations', [('train', 9), ('train', 30), ('test', 9), ('test', 30)])
def test_a_run_on_one_class_and_the_ignored_label_is_warned_once(maps, classes, told, mode, iterations, monkeypatch):
    """As masks of 0 and 255 are; after the first iterations, or at the end of a shorter run."""
    messages = []
    monkeypatch.setattr(our_hooks, 'print_log', lambda message, **kwargs: messages.append(message))
    monkeypatch.setattr(CheckLabelsHook, 'watched', 20)
    hook = CheckLabelsHook()
    hook.before_run(SimpleNamespace(model=SimpleNamespace(decode_head=Head(classes))))
    for number in range(iterations):
        sample = BaseDataElement(gt_sem_seg=PixelData(data=torch.tensor([[maps[number % len(maps)]]])))
        getattr(hook, f'before_{mode}_iter')(None, number, dict(data_samples=[sample]))
        other = BaseDataElement(gt_sem_seg=PixelData(data=torch.tensor([[[0, 1]]])))
        hook.before_val_iter(None, number, dict(data_samples=[] if classes == 1 else [other]))
        assert len(messages) == (told is not None and number >= 19), 'what is validated on is not what is learnt'
    hook.after_run(None)
    assert len(messages) == (told is not None)
    if told is not None:
        assert re.search(f'the first {min(iterations, 20)} iterations {told}', messages[0]), messages
        assert 'save 255 as 1' in messages[0] and 'tools/check_data.py' in messages[0]


@pytest.mark.parametrize('rates, threads, device, warned', [
    ([50, 50, 50], 2, 'cpu', []),
    ([190], 2, 'cpu', [190]),
    ([50, 50, 190, 190, 190], 2, 'cpu', [190]),  # another program begins later; one warning is enough
    ([300], 8, 'cpu', []), ([400], 8, 'cpu', [400]),  # eight threads are interrupted more often than two
    ([190], 1, 'cpu', []), ([190], 2, 'meta', []),
])
@pytest.mark.parametrize('mode', ['train', 'val', 'test'])
def test_a_run_beside_other_processes_is_warned_once(rates, threads, device, warned, mode, monkeypatch):
    """``rates``: involuntary context switches per second, in windows of ten seconds of two iterations each."""
    messages, now, taken = [], [5.0], [1000.0]  # what happened before the first iteration does not count
    monkeypatch.setattr(our_hooks, 'print_log', lambda message, **kwargs: messages.append(message))
    monkeypatch.setattr(our_hooks, 'involuntary_switches', lambda: round(taken[0]))
    monkeypatch.setattr(our_hooks.time, 'monotonic', lambda: now[0])
    monkeypatch.setattr(torch, 'get_num_threads', lambda: threads)
    hook = HOOKS.build(dict(type='mmlk.BusyMachineHook'))
    hook.before_run(SimpleNamespace(model=nn.Linear(2, 2, device=device)))
    getattr(hook, f'after_{mode}_iter')(None, 0, None)
    for rate in rates:
        for _ in range(2):
            now[0] += BusyMachineHook.window / 2
            taken[0] += rate * BusyMachineHook.window / 2
            getattr(hook, f'after_{mode}_iter')(None, 0, None)
    assert [int(re.search(r'lost theirs (\d+) times a second', message).group(1)) for message in messages] == warned
    for message in messages:
        assert f'OMP_NUM_THREADS to {threads // 2},' in message
