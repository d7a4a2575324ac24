import copy
import math
import multiprocessing
import os

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.registry import HOOKS as ROOT
from mmengine.runner import Runner
from torch import nn
from torch.nn import functional as F

from mmlk.backbones.slak import SLaK
from mmlk.engine import sparsity
from mmlk.engine.sparsity import DynamicSparsityHook
from tests.utils import fill

EXPECTED_SPARSE = {'0.weight', '3.weight', '4.weight'}


class Classifier(BaseModel):
    """Convolutions under a linear head; the BatchNorm between has statistics that must not be counted twice."""

    def __init__(self, backbone=None):
        super().__init__()
        self.backbone = backbone or nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, groups=4), nn.Conv2d(16, 12, 1))
        self.head = nn.Linear(12, 5)

    def forward(self, images, labels, mode):
        features = self.backbone(torch.stack(images))
        features = features[-1] if isinstance(features, tuple) else features
        return dict(loss=F.cross_entropy(self.head(features.mean((2, 3))), torch.stack(labels)))


class Watch(DynamicSparsityHook):
    """Keeps what it was like after every iteration."""

    def before_train(self, runner):
        super().before_train(runner)
        self.seen = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        self.seen.append({name: mask.clone() for name, mask in self.masks.items()})
        for name, weight in runner.model.get_submodule(self.module).named_parameters():
            if name in self.masks:
                assert not weight[~self.masks[name]].any()

    @property
    def moved(self):
        """Iterations, counted from 1, that changed a mask."""
        return [i + 2 for i, (a, b) in enumerate(zip(self.seen, self.seen[1:]))
                if any(not torch.equal(a[name], b[name]) for name in a)]


def data(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(3, 12, 12, generator=generator), torch.tensor(i % 5)) for i in range(8)]


def runner(work_dir, hook, model=None, iters=9, optimizer=dict(type='AdamW', lr=1e-2), images=None, every=100,
           accumulative_counts=1, hooks=(), **kwargs):
    return Runner(
        model or fill(Classifier()), str(work_dir), experiment_name=os.urandom(4).hex(),
        custom_hooks=[*([hook] if hook else []), *hooks],
        train_dataloader=dict(dataset=images or data(), batch_size=4, collate_fn=pseudo_collate,
                              sampler=dict(type='InfiniteSampler', seed=3)),
        train_cfg=dict(by_epoch=False, max_iters=iters), log_level='ERROR',
        optim_wrapper=dict(optimizer=optimizer, accumulative_counts=accumulative_counts),
        param_scheduler=dict(type='LinearLR', start_factor=0.5, by_epoch=False, end=iters),
        default_hooks=dict(logger=None, timer=None,
                           checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=every)), **kwargs)


def train(work_dir, hook, **kwargs):
    """The trained model."""
    return runner(work_dir, hook, **kwargs).train()


def shares(hook):
    kept = {name: int(mask.sum()) for name, mask in hook.masks.items()}
    return kept, sum(mask.numel() for mask in hook.masks.values())


@pytest.mark.parametrize('share', [0.4, 0.75])
def test_the_whole_is_as_dense_as_asked_throughout(tmp_path, share):
    hook = Watch(sparsity=share, update_frequency=2)
    model = train(tmp_path, hook)
    kept, total = shares(hook)
    assert set(kept) == EXPECTED_SPARSE
    assert abs(sum(kept.values()) - (1 - share) * total) <= 0.5
    for masks in hook.seen:
        assert {name: int(mask.sum()) for name, mask in masks.items()} == kept
    assert (model.head.weight != 0).all() and (model.backbone[0].bias != 0).all()


def test_layers_get_what_snip_gives_them(tmp_path):
    """Scores of all layers are ranked together; an own computation of them, on the first batch."""
    model, reference, batch = fill(Classifier()), fill(Classifier()), []

    class Keep(Watch):

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            batch.extend(copy.deepcopy(data_batch))
            super().before_train_iter(runner, batch_idx, data_batch)

    hook = Keep()
    train(tmp_path, hook, model=model, iters=1)
    reference(*batch, mode='loss')['loss'].backward()
    scores = {name: (p * p.grad).abs() for name, p in reference.backbone.named_parameters() if p.dim() == 4}
    ranked = torch.cat([score.flatten() for score in scores.values()]).sort(descending=True).values
    best = {name: score >= ranked[round(0.6 * len(ranked)) - 1] for name, score in scores.items()}
    kept, _ = shares(hook)
    assert kept == {name: int(mask.sum()) for name, mask in best.items()}
    assert len({kept[name] / mask.numel() for name, mask in best.items()}) == 3, 'layers of one density show nothing'
    assert all((mask != best[name]).any() for name, mask in hook.masks.items()), 'the places are random'
    # looking at the gradients left no trace: one batch went through the BatchNorm
    assert model.backbone[1].num_batches_tracked == 1


@pytest.mark.parametrize('frequency, moved', [(3, [3, 6, 9]), (4, [4, 8]), (None, [])])
def test_masks_move_on_update_steps_and_only_then(tmp_path, frequency, moved):
    hook = Watch(update_frequency=frequency)
    train(tmp_path, hook)
    assert hook.moved == moved


def test_gradient_accumulation_counts_steps_of_the_optimizer(tmp_path):
    hook = Watch(update_frequency=2, prune_rate=1.0)
    train(tmp_path, hook, iters=10, accumulative_counts=2)
    assert hook.moved == [4, 8] and hook.steps == 5


def test_an_update_cuts_the_smallest_at_a_rate_that_falls_as_a_cosine(tmp_path, monkeypatch):
    """With nothing grown once training has begun, the masks tell what was cut."""
    grow = sparsity._grown
    monkeypatch.setattr(sparsity, '_grown', lambda mask, *args: mask if mask.any() else grow(mask, *args))
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.5)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9, 0.005)  # as the official code does it
    rates = {}
    for step in range(1, 10):
        optimizer.step()
        cosine.step()
        rates[step] = cosine.get_last_lr()[0]

    class Check(Watch):

        def _update(self):
            before = {name: (mask.clone(), weight.detach().abs().clone())
                      for (name, weight), mask in zip(self._weights.items(), self.masks.values())}
            super()._update()
            for name, (mask, magnitude) in before.items():
                cut = mask & ~self.masks[name]
                assert cut.sum() == math.ceil(rates[self.steps] * int(mask.sum()))
                assert magnitude[cut].max() <= magnitude[self.masks[name]].min()

    hook = Check(update_frequency=2, prune_rate=0.5)
    train(tmp_path, hook)
    assert hook.moved == [2, 4, 6, 8]


def test_grown_weights_start_at_zero(tmp_path):
    hook = Watch(update_frequency=9, prune_rate=0.5)
    model = train(tmp_path, hook)
    grown = {name: hook.seen[-1][name] & ~hook.seen[-2][name] for name in hook.masks}
    assert all(mask.any() for mask in grown.values())
    for name, mask in grown.items():
        assert not model.backbone.get_parameter(name)[mask].any()


@pytest.mark.parametrize('kind, masked', [('SGD', True), ('AdamW', False)])
def test_momentum_is_cut_for_sgd_and_left_alone_for_adam(tmp_path, kind, masked):
    hook = Watch(update_frequency=4)
    run = runner(tmp_path, hook, optimizer=dict(type=kind, lr=1e-2, **(dict(momentum=0.9) if masked else {})))
    model = run.train()
    for name, mask in hook.masks.items():
        state = run.optim_wrapper.optimizer.state[model.backbone.get_parameter(name)]
        moment = state['momentum_buffer' if masked else 'exp_avg']
        assert moment[mask].any() and bool(moment[~mask].any()) is not masked


@pytest.mark.parametrize('optimizer', [dict(type='AdamW', lr=1e-2), dict(type='SGD', lr=1e-1, momentum=0.9)])
@pytest.mark.parametrize('frozen', [False, True])
def test_a_resumed_run_equals_one_that_did_not_stop(tmp_path, optimizer, frozen):
    def start():
        model = fill(Classifier())
        if frozen:
            for name in EXPECTED_SPARSE:
                weight = model.backbone.get_parameter(name)
                weight.data.mul_(torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.6)
        return model

    straight, first, second = (Watch(frozen=frozen, update_frequency=2, prune_rate=0.5) for _ in range(3))
    whole = runner(tmp_path / 'a', straight, model=start(), optimizer=optimizer)
    whole.train()
    # stopped after an update, before the weights that it grew have taken a step: the weights do not tell the mask
    part = runner(tmp_path / 'b', first, model=start(), optimizer=optimizer, every=4)
    part.train()
    resumed = runner(tmp_path / 'c', second, model=fill(Classifier(), seed=5), optimizer=optimizer,
                     load_from=str(tmp_path / 'b/iter_4.pth'), resume=True)
    resumed.train()
    assert (resumed.iter, second.steps, len(second.seen)) == (9, 9, 5)
    for name in EXPECTED_SPARSE:
        for a, b in zip(straight.seen[4:], second.seen):
            assert torch.equal(a[name], b[name])
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values()):
        assert torch.equal(a, b), name
    a, b = (run.optim_wrapper.optimizer.state_dict()['state'] for run in (whole, resumed))
    for key, state in a.items():
        for name, value in state.items():
            assert value is None or torch.equal(torch.as_tensor(value), torch.as_tensor(b[key][name])), (key, name)


def sparse_slak():
    net = fill(SLaK(dict(depths=(1, 1), dims=(4, 12), kernel_size=(9, 7, 3), Decom=True), out_indices=(0, 1)))
    for p in net.parameters():
        if p.dim() in (2, 4):
            p.data.mul_(torch.rand(p.shape, generator=torch.Generator().manual_seed(2)) < 0.6)
    return net


def test_frozen_keeps_the_zeros_of_loaded_weights(tmp_path):
    torch.save(sparse_slak().state_dict(), tmp_path / 'sparse.pth')
    before = sparse_slak()
    model = Classifier(SLaK(dict(depths=(1, 1), dims=(4, 12), kernel_size=(9, 7, 3), Decom=True), out_indices=(0, 1),
                            init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'sparse.pth'))))
    hook = Watch(frozen=True, update_frequency=2)
    train(tmp_path, hook, model=model, images=[(F.pad(x, (2, 2, 2, 2)), y) for x, y in data()])
    assert hook.moved == []
    for name, weight in before.named_parameters():
        after = model.backbone.get_parameter(name)
        if weight.dim() in (2, 4):
            assert torch.equal(after == 0, weight == 0) and not torch.equal(after, weight), name


def test_frozen_says_so_when_nothing_is_zero(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(sparsity, 'print_log', lambda text, **kwargs: said.append(text))
    train(tmp_path, DynamicSparsityHook(frozen=True), iters=1)
    assert len(said) == 1 and 'no weight is zero' in said[0]


def test_frozen_takes_the_weights_of_load_from_not_its_masks(tmp_path):
    """Fine-tuning: the checkpoint of a sparse training has masks, of its own schedule."""
    train(tmp_path / 'a', Watch(update_frequency=4), iters=8, every=8)
    checkpoint = torch.load(tmp_path / 'a/iter_8.pth', weights_only=False)
    hook = Watch(frozen=True)
    train(tmp_path / 'b', hook, load_from=str(tmp_path / 'a/iter_8.pth'), iters=3)
    for name, mask in hook.masks.items():
        assert torch.equal(mask, checkpoint['state_dict'][f'backbone.{name}'] != 0)
    assert any(not torch.equal(mask, checkpoint['dynamic_sparsity']['masks'][name])
               for name, mask in hook.masks.items()), 'the last update has grown weights that are still zero'


@pytest.mark.parametrize('change, same', [
    (dict(), True), (dict(sparsity=0.5), False), (dict(seed=1), False), (dict(prune_rate=0.9), False),
    (dict(update_frequency=3), False), (dict(update_frequency=None), False)])
def test_arguments_decide_the_masks(tmp_path, change, same):
    masks = []
    for kwargs in ({}, change):
        hook = DynamicSparsityHook(**{'update_frequency': 2, **kwargs})
        train(tmp_path, hook, iters=4)
        masks.append(hook.masks)
    assert all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items()) is same


def test_module_and_only_l_choose_the_weights(tmp_path):
    def names(**kwargs):
        hook = DynamicSparsityHook(**kwargs)
        train(tmp_path, hook, model=Classifier(sparse_slak()), iters=1,
              images=[(F.pad(x, (2, 2, 2, 2)), y) for x, y in data()])
        return set(hook.masks)

    base = {name for name, p in sparse_slak().named_parameters() if p.dim() in (2, 4)}
    assert names() == base
    assert names(only_L=True) == {f'stages.{i}.0.large_kernel.LoRA{j}.conv.weight' for i in (0, 1) for j in (1, 2)}
    assert names(module='') == {'head.weight', *(f'backbone.{name}' for name in base)}
    assert names(module='backbone.stages.1') == {
        name[len('stages.1.'):] for name in base if name.startswith('stages.1.')}


def test_frozen_parameters_are_left_out(tmp_path):
    model = fill(Classifier())
    model.backbone[3].requires_grad_(False)
    hook = Watch()
    train(tmp_path, hook, model=model, iters=2)
    assert set(hook.masks) == EXPECTED_SPARSE - {'3.weight'} and (model.backbone[3].weight != 0).all()


@pytest.mark.parametrize('wrong, message', [
    (dict(sparsity=0), r'sparsity must be in \(0, 1\), got 0'),
    (dict(sparsity=1.0), r'sparsity must be in \(0, 1\), got 1.0'),
    (dict(prune_rate=0), r'prune_rate must be in \(0, 1\], got 0'),
    (dict(update_frequency=0), 'update_frequency must be positive or None, got 0'),
])
def test_refuses_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        ROOT.build(dict(type='mmlk.DynamicSparsityHook', **wrong))


@pytest.mark.parametrize('hook, message', [
    (dict(module='neck'), "Classifier has no module 'neck'"),
    (dict(module='backbone.1'), 'BatchNorm2d has no weights of two or four dimensions that are trained'),
    (dict(only_L=True), "Sequential has no weights in its 'large_kernel.LoRA' that are trained"),
])
def test_refuses_models(tmp_path, hook, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, DynamicSparsityHook(**hook))


def test_an_average_over_fixed_masks_is_sparse(tmp_path):
    model = fill(Classifier())
    model.backbone[4].weight.data[:, ::2] = 0
    averaged = runner(tmp_path, DynamicSparsityHook(frozen=True), model=model, hooks=[dict(type='EMAHook')], every=9)
    averaged.train()
    saved = torch.load(tmp_path / 'iter_9.pth', weights_only=False)
    for state in (saved['state_dict'], {k[7:]: v for k, v in saved['ema_state_dict'].items()}):
        weight = state['backbone.4.weight']
        assert not weight[:, ::2].any() and weight[:, 1::2].all()


class WatchAverage(Watch):
    """Works the average out beside ``EMAHook``, by the rule of the official ``ModelEma.update``."""

    priority = 'VERY_LOW'
    momentum = 0.1

    def before_train(self, runner):
        self.expected = None
        [self.ema] = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
        [self.sparse] = [hook for hook in runner.hooks if type(hook) is DynamicSparsityHook]

    def before_train_iter(self, *args, **kwargs):
        pass

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        weights = {name: weight.detach().clone() for name, weight in self.sparse._weights.items()}
        if self.expected is None:  # the first step is copied
            self.expected = weights
        else:
            for name, weight in weights.items():
                mean, mask = self.expected[name], self.sparse.masks[name]
                new = (mean == 0) & mask
                step = (mean * (1 - self.momentum) + weight * self.momentum) * mask
                self.expected[name] = step + new * (1 - self.momentum) * weight
        for name, expected in self.expected.items():
            found = self.ema.ema_model.module.backbone.get_parameter(name)
            assert torch.allclose(found, expected, atol=1e-7), (runner.iter, name)
            assert not found[~self.sparse.masks[name]].any()

    def before_save_checkpoint(self, runner, checkpoint):
        pass


def test_an_average_follows_masks_that_move(tmp_path):
    watch = WatchAverage()
    ema = dict(type='EMAHook', momentum=WatchAverage.momentum)
    hook = DynamicSparsityHook(update_frequency=2, prune_rate=0.5)
    model = train(tmp_path / 'a', hook, hooks=[ema, watch], every=5)
    assert len(watch.expected) == len(EXPECTED_SPARSE) and hook.steps == 9
    # and a run that was stopped and resumed has the same average and masks
    again = DynamicSparsityHook(update_frequency=2, prune_rate=0.5)
    resumed = runner(tmp_path / 'b', again, model=fill(Classifier(), seed=5), hooks=[ema],
                     load_from=str(tmp_path / 'a/iter_5.pth'), resume=True)
    resumed.train()
    [average] = [h.ema_model.module for h in resumed.hooks if isinstance(h, EMAHook)]
    for name, expected in watch.expected.items():
        assert torch.allclose(average.backbone.get_parameter(name), expected, atol=1e-7), name
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), resumed.model.state_dict().values()))


class Scaled(nn.Module):
    """A scale of four dimensions that starts at zero, as a GRN's, and a convolution that does."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 1)
        self.gamma = nn.Parameter(torch.zeros(1, 12, 1, 1))

    def forward(self, x):
        x = self.conv(x)
        return x + self.gamma * x + self.last(x)


@pytest.mark.parametrize('frozen', [False, True])
def test_scales_and_what_starts_at_zero_are_left_out(tmp_path, frozen, monkeypatch):
    said = []
    monkeypatch.setattr(sparsity, 'print_log', lambda text, **kwargs: said.append(text))

    def start():
        model = Classifier(fill(Scaled()))
        model.backbone.gamma.data.zero_()
        model.backbone.last.weight.data.zero_()
        model.backbone.conv.weight.data[::2] = 0
        return model

    hook = Watch(frozen=frozen, update_frequency=2)
    model = train(tmp_path / 'a', hook, model=start(), every=4)
    assert set(hook.masks) == {'conv.weight'}
    assert model.backbone.gamma.all() and model.backbone.last.weight.all()
    assert any('leaves out what is zero throughout at the start: last.weight' in text for text in said)
    # once resumed they are no longer zero, and still left out
    again = Watch(frozen=frozen, update_frequency=2)
    resumed = train(tmp_path / 'b', again, model=start(), load_from=str(tmp_path / 'a/iter_4.pth'), resume=True)
    assert set(again.masks) == {'conv.weight'}
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), resumed.state_dict().values()))


def test_refuses_a_module_that_is_zero_throughout(tmp_path):
    model = fill(Classifier())
    for name in EXPECTED_SPARSE:
        model.backbone.get_parameter(name).data.zero_()
    with pytest.raises(ValueError, match='all weights are zero throughout'):
        train(tmp_path, DynamicSparsityHook(), model=model)


def test_refuses_to_resume_without_fitting_masks(tmp_path):
    train(tmp_path, None, every=3, iters=3)
    resume = dict(load_from=str(tmp_path / 'iter_3.pth'), resume=True)
    with pytest.raises(ValueError, match='has no masks: it was not trained with DynamicSparsityHook'):
        train(tmp_path / 'b', DynamicSparsityHook(), **resume)
    hook = Watch(frozen=True)
    train(tmp_path / 'b', hook, **resume)
    assert len(hook.seen) == 6
    train(tmp_path, Watch(), iters=3, every=3)
    with pytest.raises(ValueError, match='do not fit the model: 4 of them are missing, too many or of other shapes, 0'):
        train(tmp_path / 'b', Watch(module='backbone.3'), **resume)


class KeepScores(DynamicSparsityHook):

    def _snip(self, model, data_batch):
        self.batch = [image.numpy() for image in data_batch[0]], [int(label) for label in data_batch[1]]
        self.scores = super()._snip(model, data_batch)
        return self.scores


def _rank(rank, folder, queue):
    """One of two processes; each has images of its own."""
    torch.distributed.init_process_group('gloo', f'file://{folder}/store', rank=rank, world_size=2)
    from mmengine.model import MMDistributedDataParallel
    model = MMDistributedDataParallel(fill(Classifier()))
    hook = KeepScores(update_frequency=2)
    train(folder, hook, model=model, images=data(seed=rank), iters=5)
    queue.put((rank, [score.numpy() for score in hook.scores], [mask.numpy() for mask in hook.masks.values()],
               [p.detach().numpy() for p in model.module.parameters()], hook.batch))
    torch.distributed.destroy_process_group()


def test_ranks_score_by_the_average_gradient_and_have_the_same_masks(tmp_path):
    context = multiprocessing.get_context('spawn')
    queue = context.Queue()
    processes = [context.Process(target=_rank, args=(rank, str(tmp_path), queue)) for rank in (0, 1)]
    for process in processes:
        process.start()
    ranks = [entry[1:] for entry in sorted((queue.get(timeout=120) for _ in processes), key=lambda entry: entry[0])]
    for process in processes:
        process.join(30)
    gradients = []
    for *_, batch in ranks:
        model = fill(Classifier())
        images, labels = map(torch.from_numpy, batch[0]), map(torch.tensor, batch[1])
        model(list(images), list(labels), mode='loss')['loss'].backward()
        gradients.append({name: p.grad for name, p in model.backbone.named_parameters() if p.dim() == 4})
    first, second = gradients
    expected = [((first[name] + second[name]) / 2 * model.backbone.get_parameter(name)).detach().abs().flatten().numpy()
                for name in first]
    for scores, *_ in ranks:
        assert all(np.allclose(a, b, rtol=1e-4, atol=1e-9) for a, b in zip(scores, expected))
    ranked = np.sort(np.concatenate(expected))[::-1]
    counts = [int((score >= ranked[round(0.6 * len(ranked)) - 1]).sum()) for score in expected]
    (_, masks, weights, _), (_, others, other_weights, _) = ranks
    assert [int(mask.sum()) for mask in masks] == counts
    assert all((a == b).all() for a, b in zip(masks + weights, others + other_weights))
