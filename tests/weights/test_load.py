import copy
import logging
from argparse import Namespace
from collections import OrderedDict

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer, MMLogger
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.nn import functional as F

from mmlk.backbones import ConvNeXt, HorNet, RepLKNet
from mmlk.reparam import merge
from mmlk.weights import LoadReport, WeightsError, load

from tests.test_training import shrink_model
from tests.weights.conftest import TINY, Segmentor, assert_same, randomise, snapshot

XL = dict(large_kernel_sizes=(7, 7, 5, 5), layers=(1, 1, 2, 1), channels=(4, 8, 12, 16), small_kernel=None,
          dw_ratio=1.5, norm_intermediate_features=True)


def prefixed(prefix, state):
    return OrderedDict((prefix + key, value) for key, value in state.items())


def classifier(state, classes=10):
    """The official classifier's keys: the backbone's, and a norm and a linear layer after it."""
    norm = randomise(nn.BatchNorm2d(16), seed=7).state_dict()
    return OrderedDict({**state, **prefixed('norm.', norm), 'head.weight': torch.randn(classes, 16),
                        'head.bias': torch.randn(classes)})


def mmpretrain(state):
    """The renaming of mmpretrain's replknet_to_mmpretrain.py: norm to the last stage, head to head.fc."""
    def rename(key):
        if key.startswith('norm.'):
            return 'backbone.stages.3.' + key
        return key.replace('head.', 'head.fc.') if key.startswith('head.') else 'backbone.' + key
    return OrderedDict((rename(key), value) for key, value in state.items())


def halved(state):
    return {key: value.half() if value.is_floating_point() else value for key, value in state.items()}


def history():
    buffer = HistoryBuffer()
    buffer.update(np.float64(1.5).item())
    return buffer


def whole(state):
    """The rest of a mmseg checkpoint around the backbone's keys."""
    model = Segmentor()
    return OrderedDict({**randomise(model, seed=9).state_dict(), **prefixed('backbone.', state)})


OPTIMIZER = {'state': {0: {'step': 3, 'exp_avg': torch.ones(3)}}, 'param_groups': [{'lr': 0.1}]}
META = {'env_info': 'x', 'config': 'model = dict()', 'CLASSES': ('wall', 'sky'), 'PALETTE': [[0, 0, 0]]}

# what is saved -> what the report says of the format
FORMATS = {
    'bare': (lambda s: s, 'bare state dict'),
    'official, in model': (lambda s: {'model': classifier(s)}, "'model'"),
    'official training file': (lambda s: {'model': classifier(s), 'optimizer': OPTIMIZER, 'epoch': 299,
                                          'scaler': {'scale': 65536.0}, 'args': Namespace(model='31B'),
                                          'model_ema': {k: v + 1 for k, v in classifier(s).items()}},
                               "'model' beside args, epoch, model_ema, optimizer, scaler"),
    'average alone': (lambda s: {'model_ema': classifier(s)}, "'model_ema'"),
    'timm average': (lambda s: {'state_dict_ema': prefixed('module.', s), 'arch': 'x'},
                     "'state_dict_ema' beside arch"),
    'state_dict': (lambda s: {'state_dict': classifier(s)}, "'state_dict'"),
    'mmpretrain': (lambda s: mmpretrain(classifier(s)), "keys under 'backbone.'; mmpretrain's RepLKNet"),
    'mmpretrain, published': (lambda s: {'meta': META, 'state_dict': mmpretrain(classifier(s))},
                              "'state_dict' beside meta; keys under 'backbone.'; mmpretrain's RepLKNet"),
    'mmseg 0.x, mmdet 2.x': (lambda s: {'meta': META, 'state_dict': whole(s), 'optimizer': OPTIMIZER},
                             "'state_dict' beside meta, optimizer; keys under 'backbone.'"),
    'mmseg 1.x, mmdet 3.x': (lambda s: {'meta': {**META, 'best': np.float32(0.5)}, 'state_dict': whole(s),
                                        'optimizer': OPTIMIZER, 'param_schedulers': [{'last_step': 3}],
                                        'message_hub': {'log_scalars': {'loss': history()}}},
                             "'state_dict' beside message_hub, meta, optimizer, param_schedulers; keys"),
    'data parallel': (lambda s: prefixed('module.', s), 'names freed of module. and _orig_mod.'),
    'parallel, whole': (lambda s: {'state_dict': prefixed('module.', whole(s))}, "keys under 'backbone.'"),
    'compiled': (lambda s: prefixed('_orig_mod.', s), 'names freed of module. and _orig_mod.'),
    'compiled, parallel': (lambda s: prefixed('module._orig_mod.', s), 'names freed of'),
    'averaged': (lambda s: {**prefixed('module.', s), 'n_averaged': torch.tensor(5)}, 'names freed of'),
    'half': (lambda s: halved(s), 'bare state dict'),
}


# safetensors holds tensors by name and no nested dicts
FLAT = ('bare', 'mmpretrain', 'data parallel', 'compiled', 'compiled, parallel', 'averaged', 'half')
WRITTEN = [(name, writer) for name in FORMATS for writer in ('zip', 'legacy')]


@pytest.mark.parametrize('name, writer', WRITTEN + [(name, 'safetensors') for name in FLAT])
def test_every_format_fills_every_tensor(tmp_path, trained, fresh, name, writer):
    path, state = tmp_path / 'weights', snapshot(trained)
    make, said = FORMATS[name]
    payload = make(state)
    if writer == 'safetensors':
        from safetensors.torch import save_file
        save_file({key: value.contiguous() for key, value in payload.items()}, str(path))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=writer == 'zip')
    report = load(fresh, path)
    if name == 'half':
        state = {key: value.to(state[key].dtype) for key, value in halved(state).items()}
    assert_same(fresh.state_dict(), state, count=290)
    assert all(value.dtype == state[key].dtype for key, value in fresh.state_dict().items())
    assert report.complete and said in report.format
    assert sorted(report.matched) == sorted(state) and not report.left
    assert not set(report.unexpected) & set(state)


def test_report_says_what_was_not_used(tmp_path, trained, fresh):
    torch.save(whole(trained.state_dict()), tmp_path / 'w.pth')
    report = load(fresh, tmp_path / 'w.pth')
    heads = [key for key in Segmentor().state_dict() if not key.startswith('backbone.')]
    assert sorted(report.unexpected) == sorted(heads)
    lines = str(report).splitlines()
    assert {'    290  matched', f'     {len(heads)}  unexpected', '      0  missing'} <= set(lines)


def test_a_whole_model_takes_a_whole_checkpoint(tmp_path):
    source, target = randomise(Segmentor(), 3), randomise(Segmentor(), 4)
    torch.save({'meta': META, 'state_dict': source.state_dict(), 'optimizer': OPTIMIZER}, tmp_path / 'w.pth')
    report = load(target, tmp_path / 'w.pth')
    assert_same(target.state_dict(), source.state_dict())
    assert not report.unexpected


@pytest.mark.parametrize('wrap', [nn.DataParallel, torch.compile])
def test_a_wrapped_module_is_filled(tmp_path, trained, fresh, wrap):
    torch.save(trained.state_dict(), tmp_path / 'w.pth')
    load(wrap(fresh), tmp_path / 'w.pth')
    assert_same(fresh.state_dict(), trained.state_dict())


def test_a_merged_file_fills_a_merged_module(tmp_path, trained):
    merged = merge(trained)
    torch.save({'state_dict': merged.state_dict()}, tmp_path / 'w.pth')
    target = randomise(RepLKNet(TINY, merged=True), 5)
    load(target, tmp_path / 'w.pth')
    assert_same(target.state_dict(), merged.state_dict())


def refused(module, path, match, **kwargs):
    """Loading raises, and the module is what it was."""
    before = snapshot(module)
    with pytest.raises(WeightsError, match=match) as error:
        load(module, path, **kwargs)
    assert_same(module.state_dict(), before)
    return str(error.value)


def test_a_missing_key_is_named(tmp_path, trained, fresh):
    state = trained.state_dict()
    del state['transitions.1.0.conv.weight'], state['stages.2.blocks.3.pw2.bn.running_var']
    torch.save({'model': state}, tmp_path / 'w.pth')
    message = refused(fresh, tmp_path / 'w.pth', '2 of the 290 tensors of RepLKNet were not filled')
    assert 'transitions.1.0.conv.weight' in message and 'stages.2.blocks.3.pw2.bn.running_var' in message
    assert "'model'" in message


def test_counters_may_be_missing(tmp_path, trained, fresh):
    """Files from before torch 0.4.1 have no num_batches_tracked."""
    state = {k: v for k, v in trained.state_dict().items() if not k.endswith('num_batches_tracked')}
    torch.save(state, tmp_path / 'w.pth')
    assert load(fresh, tmp_path / 'w.pth').complete
    for key, value in state.items():
        assert torch.equal(fresh.state_dict()[key], value)


def test_another_size_is_recognised(tmp_path, fresh):
    large = RepLKNet('31L', out_indices=(0, ))
    torch.save(large.state_dict(), tmp_path / 'w.pth')
    message = refused(RepLKNet('31B', out_indices=(0, )), tmp_path / 'w.pth', 'were not filled')
    assert 'stem.0.conv.weight: 192x3x3x3 in the file, 128x3x3x3 in the module' in message
    assert 'looks like RepLKNet-31L, training form, the module is RepLKNet-31B, training form' in message
    said = refused(fresh, tmp_path / 'w.pth', 'looks like RepLKNet-31L')
    assert 'the module is RepLKNet, incomplete or of no published arch, training form' in said


@pytest.mark.parametrize('file_merged', [True, False])
def test_the_other_form_is_recognised(tmp_path, file_merged):
    torch.save(RepLKNet(TINY, merged=file_merged).state_dict(), tmp_path / 'w.pth')
    said = 'build it with merged=True' if file_merged else r'mmlk\.reparam\.merge\(\)'
    refused(RepLKNet(TINY, merged=not file_merged), tmp_path / 'w.pth', said)


@pytest.mark.parametrize('make', [lambda s: s, lambda s: mmpretrain(classifier(s))])
def test_a_backbone_file_does_not_pass_for_a_whole_model(tmp_path, trained, make):
    torch.save(make(trained.state_dict()), tmp_path / 'w.pth')
    refused(Segmentor(), tmp_path / 'w.pth', r'load\(model\.backbone')


def test_a_strange_file_says_what_the_names_are(tmp_path, fresh):
    torch.save({'conv1.weight': torch.ones(3)}, tmp_path / 'w.pth')
    refused(fresh, tmp_path / 'w.pth', r'no name fits: the file has conv1\.weight; the module has stem\.0')


@pytest.mark.parametrize('payload, said', [
    ([torch.ones(2)], 'holds a list, not tensors by name'),
    ({'model': {'depth': 3}, 'epoch': 1}, 'holds no tensors by name; its keys are model, epoch'),
])
def test_files_without_weights(tmp_path, fresh, payload, said):
    torch.save(payload, tmp_path / 'w.pth')
    refused(fresh, tmp_path / 'w.pth', said)


@pytest.mark.parametrize('strict', [True, False])
@pytest.mark.parametrize('change, said', [
    (lambda w: torch.full_like(w, float('nan')), 'stem.1.conv.weight holds NaN or infinity'),
    (lambda w: torch.where(w == w.max(), float('-inf'), w), 'stem.1.conv.weight holds NaN or infinity'),
    (lambda w: (w * 10).to(torch.int8), 'stem.1.conv.weight is torch.int8, the module needs torch.float32'),
    (lambda w: w.to(torch.complex64), 'is torch.complex64'),
    (lambda w: w.double() + 1e300, 'overflows in torch.float32, from torch.float64'),
    (lambda w: w.to_sparse(), 'not a plain dense tensor'),
    (lambda w: w.to('meta'), 'not a plain dense tensor'),
])
def test_values_that_are_no_weights(tmp_path, trained, fresh, strict, change, said):
    state = trained.state_dict()
    state['stem.1.conv.weight'] = change(state['stem.1.conv.weight'])
    torch.save(state, tmp_path / 'w.pth')
    refused(fresh, tmp_path / 'w.pth', said, strict=strict)


def test_not_strict_loads_what_fits_and_warns(tmp_path, trained, fresh, caplog):
    state, before = snapshot(trained), snapshot(fresh)
    del state['stem.0.conv.weight']
    state['stem.1.conv.weight'] = torch.ones(5)
    torch.save(state, tmp_path / 'w.pth')
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        report = load(fresh, tmp_path / 'w.pth', strict=False)
    finally:
        logger.removeHandler(caplog.handler)
    assert report.missing == ['stem.0.conv.weight']
    assert report.wrong_shape == [('stem.1.conv.weight', (5, ), (4, 1, 3, 3))]
    assert isinstance(report, LoadReport) and not report.complete and len(report.matched) == 288
    for key, value in fresh.state_dict().items():
        kept = key in ('stem.0.conv.weight', 'stem.1.conv.weight')
        assert torch.equal(value, before[key] if kept else state[key]), key
    record = caplog.records[-1]
    assert record.levelno == logging.WARNING and record.getMessage() == str(report)


def test_converted_to_the_modules_dtype(tmp_path, trained):
    torch.save(trained.state_dict(), tmp_path / 'w.pth')
    target = RepLKNet(TINY).double()
    load(target, tmp_path / 'w.pth')
    assert_same(target.state_dict(), trained.double().state_dict())


@pytest.mark.parametrize('make', [classifier, lambda s: mmpretrain(classifier(s))])
def test_norms_that_only_dense_prediction_has_may_stay(tmp_path, make):
    """No classifier holds the norms on RepLKNet-XL's outputs, and its own last norm must not pass for one."""
    source = randomise(RepLKNet({**XL, 'norm_intermediate_features': False}), 1)
    target = randomise(RepLKNet(XL), 2)
    before = snapshot(target)
    torch.save({'model': make(source.state_dict())}, tmp_path / 'w.pth')
    report = load(target, tmp_path / 'w.pth')
    norms = [key for key in before if key.split('.')[2] == 'norm']
    assert len(norms) == 4 * 5 and not report.missing
    assert sorted(report.left) == sorted(key for key in norms if not key.endswith('num_batches_tracked'))
    assert '16  left as it was' in str(report)
    for key, value in target.state_dict().items():
        assert torch.equal(value, before[key] if key in norms else source.state_dict()[key]), key


def test_those_norms_are_needed_once_the_file_has_some(tmp_path):
    state = randomise(RepLKNet(XL), 1).state_dict()
    del state['stages.2.norm.bias']
    torch.save(state, tmp_path / 'w.pth')
    refused(RepLKNet(XL), tmp_path / 'w.pth', r'stages\.2\.norm\.bias')


def test_mmengines_own_checkpoint(tmp_path, trained):
    """One written by a Runner, with its message hub, loggers' buffers and schedulers."""
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Model(BaseModel):
        def __init__(self):
            super().__init__()
            self.backbone = RepLKNet(TINY)

        def forward(self, *images, mode):
            return {'loss': self.backbone(torch.stack(images))[-1].mean()}

    model = Model()
    randomise(model, 1)
    Runner(model, work_dir=str(tmp_path), train_dataloader=dict(
        dataset=[torch.randn(3, 32, 32) for _ in range(4)], sampler=dict(type='DefaultSampler'),
        batch_size=2, collate_fn=dict(type='pseudo_collate')), train_cfg=dict(by_epoch=False, max_iters=2),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)), experiment_name='weights',
        param_scheduler=dict(type='LinearLR', start_factor=0.5, by_epoch=False),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2))).train()
    file = tmp_path / 'iter_2.pth'
    report = load(trained, file)
    assert_same(trained.state_dict(), model.backbone.state_dict())
    assert 'message_hub' in report.format and 'optimizer' in report.format


def test_a_file_of_a_deeper_arch_does_not_pass_for_the_modules_own(tmp_path):
    with torch.device('meta'):
        shapes = {name: value.shape for name, value in ConvNeXt('S').state_dict().items()}
    torch.save({name: torch.zeros(shape, dtype=torch.half) for name, shape in shapes.items()}, tmp_path / 'small.pth')
    net = ConvNeXt('T')
    before = snapshot(net)
    with pytest.raises(WeightsError, match='tensors for which ConvNeXt has no place') as failed:
        load(net, tmp_path / 'small.pth')
    assert 'the file looks like ConvNeXt-S, the module is ConvNeXt-T' in str(failed.value)
    assert_same(net.state_dict(), before)
    report = load(net, tmp_path / 'small.pth', strict=False)
    assert report.hints and not report.complete and not report.missing
    shallow = ConvNeXt('S', out_indices=(0, 1))  # its own first stages, which T has as well
    assert not load(shallow, tmp_path / 'small.pth').missing


def test_values_of_another_shape_that_the_module_can_resize(tmp_path):
    donor, net = (HorNet(dict(depths=(1, 1, 1, 1), base_dim=8, gnconv=(
        dict(order=2), dict(order=2), dict(order=2, h=h, w=w), dict(order=2)))) for h, w in ((14, 8), (24, 13)))
    torch.save(donor.state_dict(), tmp_path / 'native.pth')
    report = load(net, tmp_path / 'native.pth')
    name = 'stages.2.0.gnconv.dwconv.complex_weight'
    assert report.resized == [name] and name in report.matched and '1  of them resized' in str(report)
    given, value = donor.state_dict()[name], net.state_dict()[name]
    expected = F.interpolate(given.permute(3, 0, 1, 2), (24, 13), mode='bilinear', align_corners=True)
    assert torch.equal(value, expected.permute(1, 2, 3, 0))
    name = 'stages.0.0.gnconv.proj_in.weight'  # of which nothing is known
    torch.save({**donor.state_dict(), name: torch.ones(4, 8, 1, 1)}, tmp_path / 'wrong.pth')
    with pytest.raises(WeightsError, match=f'{name}: 4x8x1x1 in the file'):
        load(net, tmp_path / 'wrong.pth')


def leaner(**changes):
    """A change of a network that keeps every name and shape it has, and drops others."""
    return lambda: RepLKNet({**TINY, **changes})


@pytest.mark.parametrize('make, said', [
    (leaner(small_kernel=None), 'build it with small_kernel=3'),
    (leaner(layers=(1, 1, 1, 1)), r'stages\.2\.blocks ends at 1 in the module and holds 2 in the file, which is of a '),
    (lambda: RepLKNet(TINY, norm_cfg=dict(type='GN', num_groups=1)), 'see its norm_cfg'),
])
def test_a_part_of_the_module_takes_no_more_than_it_has(tmp_path, trained, make, said):
    """Each target has a place for none of the names, and a tensor of the file for every one of its own."""
    torch.save({'model': classifier(trained.state_dict())}, tmp_path / 'w.pth')
    target = make()
    message = refused(target, tmp_path / 'w.pth', said)
    assert '0  missing' in message and '0  wrong shape' in message
    report = load(target, tmp_path / 'w.pth', strict=False)
    lost = set(trained.state_dict()) - set(target.state_dict())
    assert set(report.misplaced) == {name for name in lost if not name.endswith('num_batches_tracked')}
    assert not report.complete and 'head.weight' in report.unexpected


def test_norms_of_maps_are_left_out_only_with_the_maps(tmp_path):
    torch.save(randomise(RepLKNet(XL), 1).state_dict(), tmp_path / 'w.pth')
    assert load(RepLKNet(XL, out_indices=(3, 1)), tmp_path / 'w.pth').complete
    refused(RepLKNet({**XL, 'norm_intermediate_features': False}), tmp_path / 'w.pth', r'stages\.0\.norm\.weight')


def test_heads_of_a_whole_model_are_parts_too(tmp_path):
    """One that the model lacks may be left over, a layer of one that it has may not."""
    source = randomise(Segmentor(), 1)
    source.auxiliary_head = nn.Conv2d(16, 5, 1)
    torch.save(source.state_dict(), tmp_path / 'w.pth')
    assert load(Segmentor(), tmp_path / 'w.pth').complete
    source.decode_head.append(nn.Conv2d(5, 5, 1))
    torch.save(prefixed('module.', source.state_dict()), tmp_path / 'w.pth')
    for wrap in (nn.Module.eval, nn.DataParallel, torch.compile):
        refused(wrap(Segmentor()), tmp_path / 'w.pth', r'in parts that the module has\n +decode_head\.2\.weight')


def test_backbones_of_others_have_parts(tmp_path):
    """A file of a deeper ResNet is refused, but by the net that has its first stages alone."""
    torchvision = pytest.importorskip('torchvision')
    with torch.device('meta'):
        deep = torchvision.models.resnet.ResNet(torchvision.models.resnet.BasicBlock, [2, 2, 3, 2], width_per_group=64)
    state = {name: torch.ones(value.shape, dtype=value.dtype) for name, value in deep.state_dict().items()}
    torch.save(state, tmp_path / 'w.pth')
    shallow = torchvision.models.resnet18()
    refused(shallow, tmp_path / 'w.pth', 'layer3 ends at 1 in the module and holds 2 in the file')
    del shallow.layer3, shallow.layer4, shallow.fc
    assert load(shallow, tmp_path / 'w.pth').complete


def test_a_stem_is_adapted_in_a_whole_model_too_and_for_rgb_alone(tmp_path, trained):
    torch.save(whole(trained.state_dict()), tmp_path / 'w.pth')
    model = Segmentor(in_channels=5)
    refused(model, tmp_path / 'w.pth', 'adapt_stem=True makes kernels for this one of those for RGB')
    assert load(model, tmp_path / 'w.pth', adapt_stem=True).resized == ['backbone.stem.0.conv.weight']
    kernel = trained.stem[0].conv.weight
    torch.testing.assert_close(model.backbone.stem[0].conv.weight, kernel[:, [0, 1, 2, 0, 1]] * 3 / 5)
    torch.save(RepLKNet(TINY, in_channels=4).state_dict(), tmp_path / 'four.pth')
    refused(RepLKNet(TINY, in_channels=5), tmp_path / 'four.pth', 'stem.0.conv.weight: 4x4x3x3 in', adapt_stem=True)
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / 'other.pth')
    refused(nn.Linear(2, 2), tmp_path / 'other.pth', 'not that of Linear', adapt_stem=True)


# config: layers that are for a number of classes
HEADS = {
    'upernet_replknet31b_ade20k': {'decode_head.conv_seg', 'auxiliary_head.conv_seg'},
    'mask_rcnn_replknet31b_coco': {'roi_head.bbox_head.fc_cls', 'roi_head.bbox_head.fc_reg',
                                   'roi_head.mask_head.conv_logits'},
    'cascade_mask_rcnn_replknet31b_coco': {
        f'roi_head.{layer}' for i in range(3)
        for layer in (f'bbox_head.{i}.fc_cls', f'bbox_head.{i}.fc_reg', f'mask_head.{i}.conv_logits')},
    'fcos_replknet31b_coco': {'bbox_head.conv_cls'},
}


@pytest.mark.parametrize('name', HEADS)
def test_heads_for_another_number_of_classes(tmp_path, repo, name):
    """What is left new is what the number of classes is the size of; a change of any width is refused."""
    pytest.importorskip('mmseg')
    pytest.importorskip('mmdet')
    cfg = Config.fromfile(str(repo / 'configs' / f'{name}.py'))

    def build(classes=None, width=0):
        model = copy.deepcopy(cfg.model)
        shrink_model(model)
        for head in heads(model):
            head.num_classes = classes or head.num_classes
            widths = 'fc_out_channels', 'feat_channels', 'channels', 'conv_out_channels'
            key = next(key for key in widths if key in head)
            head[key] += width
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            return MODELS.build(model)

    def heads(model):
        if 'decode_head' in model:
            return [model.decode_head, model.auxiliary_head]
        if 'roi_head' not in model:
            return [model.bbox_head]
        boxes, masks = model.roi_head.bbox_head, model.roi_head.mask_head
        return [*(boxes if isinstance(boxes, list) else [boxes]), *(masks if isinstance(masks, list) else [masks])]

    torch.save({'state_dict': randomise(build(), 1).state_dict()}, tmp_path / 'w.pth')
    model = randomise(build(classes=21), 2)
    before = snapshot(model)
    refused(model, tmp_path / 'w.pth', 'were not filled')
    report = load(model, tmp_path / 'w.pth', other_classes=True)
    assert {key.rpartition('.')[0] for key in report.new} == HEADS[name] and report.complete
    state = torch.load(tmp_path / 'w.pth')['state_dict']
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] if key in report.new else state[key]), key
    refused(build(width=32), tmp_path / 'w.pth', 'were not filled', other_classes=True)


def test_a_number_of_outputs_that_is_none_of_classes_is_refused(tmp_path):
    for outputs, theirs in ((5, 6), (6, 11), (20, 9)):  # as many as classes, one more, four boxes of each
        source, target = (nn.ModuleDict(dict(backbone=nn.Linear(3, 3), head=nn.Linear(3, size)))
                          for size in (theirs, outputs))
        target['head'].num_classes = 5
        torch.save(source.state_dict(), tmp_path / 'w.pth')
        assert load(target, tmp_path / 'w.pth', other_classes=True).new == ['head.weight', 'head.bias']
        target['head'].num_classes = 4 if outputs == 6 else 7
        refused(target, tmp_path / 'w.pth', '2 of the 4 tensors', other_classes=True)
        del target['head'].num_classes
        refused(target, tmp_path / 'w.pth', '2 of the 4 tensors', other_classes=True)
