"""Pretraining: classifiers of mmpretrain over backbones of mmlk, the official recipes, and what starts from them."""
import json
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.optim import scheduler as schedulers
from mmengine.registry import DefaultScope
from PIL import Image
from torch import nn

from mmlk import classification, weights
from mmlk.analysis.classifiers import with_head
from mmlk.analysis.complexity import build_on_meta
from mmlk.backbones import ConvNeXt, RepLKNet
from mmlk.cli import main
from mmlk.datasets.audit import audit
from mmlk.datasets.check import missing
from mmlk.datasets.layouts import DemoPlan, write_demo
from mmlk.datasets.settings import conflicts
from mmlk.engine import ResumableRunner
from mmlk.engine.network import build_network
from mmlk.reparam import merge
from mmlk.weights.read import read_weights
from tests.analysis.test_classifiers import FORMS, official_file
from tests.utils import fill, image, relative_error

ROOT = Path(__file__).resolve().parent.parent
PRETRAIN, DEMO = ROOT / 'configs' / 'pretrain', ROOT / 'configs' / 'demo'
TINY = dict(large_kernel_sizes=[7, 5, 5, 3], layers=[1, 1, 1, 1], channels=[8, 16, 24, 32], small_kernel=3)
needs_mmpretrain = pytest.mark.skipif(find_spec('mmpretrain') is None, reason='mmpretrain is not installed: '
                                      'bash tools/install.sh --with pretrain')

# Of the official runs: images per step, GPUs, epochs, epochs of warm-up, drop path, averaged weights, mixing, norm of
# the backbone, and norm of the classifier. Sources: the top of each config.
CONVNEXT = dict(optimizer='AdamW', lr=4e-3, weight_decay=0.05, min_lr=1e-6, images=4096, gpus=32, epochs=300, warmup=20,
                average=True, mixing=True)
RECIPES = {
    'convnext-t_imagenet': dict(CONVNEXT, drop_path=0.1, norm=None, last_norm=nn.LayerNorm),
    'replknet31b_imagenet': dict(CONVNEXT, images=2048, warmup=10, drop_path=0.5, norm='SyncBN',
                                 last_norm=nn.SyncBatchNorm),
    'unireplknet-t_imagenet': dict(CONVNEXT, drop_path=0.2, average=False, norm='BN', last_norm=nn.LayerNorm),
    'slak-t_imagenet': dict(CONVNEXT, drop_path=0.1, norm='SyncBN', last_norm=nn.LayerNorm),
    'repvgg-a0_imagenet': dict(optimizer='SGD', lr=0.1, weight_decay=1e-4, min_lr=0.0, images=256, gpus=8, epochs=120,
                               warmup=0, drop_path=None, average=False, mixing=False, norm=None, last_norm=None),
}


def load(name):
    return Config.fromfile(str(PRETRAIN / f'{name}.py'))


def test_the_promised_configs_are_there():
    assert {path.stem for path in PRETRAIN.glob('*.py')} == set(RECIPES)


@pytest.mark.parametrize('name', RECIPES)
def test_the_recipes_are_the_official_ones(name):
    cfg, facts = load(name), RECIPES[name]
    assert re.search(r'# Source: \w.*README|# Source: ConvNeXt TRAINING', (PRETRAIN / f'{name}.py').read_text())
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == tuple(
        facts[key] for key in ('optimizer', 'lr', 'weight_decay'))
    assert optimizer.type == 'SGD' and optimizer.momentum == 0.9 or (optimizer.betas, optimizer.eps) == (
        (0.9, 0.999), 1e-8)
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=facts['images'])
    assert cfg.train_dataloader.batch_size * facts['gpus'] == facts['images'] and cfg.train_dataloader.drop_last
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[-1].end == facts['epochs']
    assert cfg.model.backbone.get('drop_path_rate') == facts['drop_path']
    assert cfg.model.backbone.out_indices == (3, )
    assert cfg.model.backbone.get('norm_cfg', {}).get('type') == facts['norm']
    averages = [hook for hook in cfg.get('custom_hooks', []) if hook.type == 'EMAHook']
    assert [(hook.momentum, hook.update_buffers) for hook in averages] == [(1e-4, True)] * facts['average']
    train = {step['type']: step for step in cfg.train_dataloader.dataset.pipeline}
    assert train['RandomResizedCrop']['scale'] == 224 and train['RandomFlip']['prob'] == 0.5
    if not facts['mixing']:
        assert cfg.model.train_cfg is None and cfg.model.head.loss == dict(type='CrossEntropyLoss')
        assert set(train) == {'LoadImageFromFile', 'RandomResizedCrop', 'RandomFlip', 'PackInputs'}
    else:
        assert cfg.model.train_cfg.augments == [dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]
        assert cfg.model.head.loss == dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')
        rand, erase = train['RandAugment'], train['RandomErasing']  # rand-m9-mstd0.5-inc1
        assert (rand.policies, rand.num_policies, rand.magnitude_level, rand.magnitude_std) == (
            'timm_increasing', 2, 9, 0.5)
        assert (erase.erase_prob, erase.mode, erase.min_area_ratio, erase.max_area_ratio) == (0.25, 'rand', 0.02, 1 / 3)
        assert train['RandomResizedCrop']['interpolation'] == 'bicubic'
        assert erase.fill_color == cfg.model.data_preprocessor.mean[::-1]
        assert erase.fill_std == cfg.model.data_preprocessor.std[::-1]
    sparse = [hook for hook in cfg.get('custom_hooks', []) if hook.type == 'mmlk.DynamicSparsityHook']
    assert sparse == ([dict(type='mmlk.DynamicSparsityHook', sparsity=0.4, prune_rate=0.5, update_frequency=2000,
                            module='')] if 'slak' in name else [])


@pytest.mark.parametrize('name', RECIPES)
def test_the_learning_rate_of_every_step_is_the_official_one(name):
    """By the formula of the official ``cosine_scheduler``, or of PyTorch's cosine over all steps for RepVGG."""
    cfg, facts, steps = load(name), RECIPES[name], 3  # steps per epoch
    warmup, total = facts['warmup'] * steps, facts['epochs'] * steps
    expected = [*np.linspace(0, facts['lr'], warmup), *(
        facts['min_lr'] + (facts['lr'] - facts['min_lr']) * (1 + math.cos(math.pi * i / (total - warmup))) / 2
        for i in range(total - warmup))]
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], facts['lr'])
    built = []
    for settings in cfg.param_scheduler:
        settings = dict(settings)
        kind = getattr(schedulers, settings.pop('type'))
        assert settings.pop('convert_to_iter_based')
        built.append(kind.build_iter_from_epoch(optimizer=optimizer, epoch_length=steps, **settings))
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]['lr'])
        for scheduler in built:
            scheduler.step()
    assert rates == pytest.approx(expected, rel=1e-6, abs=2e-6 * facts['lr'])


@needs_mmpretrain
@pytest.mark.parametrize('name', RECIPES)
def test_decay_and_form_are_the_official_ones(name):
    from mmengine.optim import build_optim_wrapper
    cfg, facts = load(name), RECIPES[name]
    model = build_on_meta(cfg, merged=False)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    found = {id(p): (group['lr'], group['weight_decay']) for group in optimizer.param_groups for p in group['params']}
    for key, parameter in model.named_parameters():
        free = key.endswith('.bias') or parameter.ndim == 1
        if 'rbr_identity.weight' in key:  # RepVGG decays it
            free = False
        assert found[id(parameter)] == (facts['lr'], 0 if free else facts['weight_decay']), key
    assert isinstance(model.neck.norm, facts['last_norm'] or nn.Identity)
    assert facts['last_norm'] is not nn.LayerNorm or model.neck.norm.eps == 1e-6
    assert not [key for key in model.backbone.state_dict() if re.search(r'^norm\d|stages\.\d\.norm\.', key)]
    assert model.head.fc.out_features == model.head.num_classes == model.data_preprocessor.num_classes == 1000


@needs_mmpretrain
@pytest.mark.parametrize('family, norm_cfg', [
    ('ConvNeXt', dict(type='LN', eps=1e-6)), ('SLaK', dict(type='LN', eps=1e-6)),
    ('UniRepLKNet', dict(type='LN', eps=1e-6)), ('RepLKNet', dict(type='BN')), ('RepVGG', None)])
def test_logits_are_those_of_the_official_classifier(family, norm_cfg, tmp_path):
    """The same weights in the official names, read by what the tests compare with the official code."""
    kind, arch, side, head = FORMS[family]
    path = official_file(tmp_path / 'official.pth', kind(arch=arch), head)
    official = with_head(kind(arch=arch), path)
    channels = kind(arch=arch).out_channels[-1]
    cfg = Config(dict(default_scope='mmpretrain', model=dict(
        type='mmlk.ImageClassifier', backbone=dict(type=f'mmlk.{family}', arch=arch, out_indices=(3, )),
        neck=dict(type='mmlk.PoolingNeck', channels=channels, norm_cfg=norm_cfg),
        head=dict(type='LinearClsHead', num_classes=1000, in_channels=channels))))
    classifier = build_network(cfg).eval()
    state = torch.load(path)['model']
    linear = 'linear.' if family == 'RepVGG' else 'head.'
    state = {('neck.' if key.startswith('norm.') else '' if key.startswith(linear) else 'backbone.')
             + (key.replace(linear, 'head.fc.') if key.startswith(linear) else key): value
             for key, value in state.items()}
    classifier.load_state_dict(state)
    x = image(2, 3, side, side)
    with torch.no_grad():
        assert relative_error(classifier(x), official.network(x)) < 1e-5
        assert relative_error(merge(classifier)(x), official.network(x)) < 1e-4


@needs_mmpretrain
def test_smoothed_mixed_labels_cost_what_they_do_in_timm():
    from mmpretrain.models import LabelSmoothLoss
    from timm.data.mixup import mixup_target
    from timm.loss import SoftTargetCrossEntropy
    logits, labels, share = image(4, 10), torch.tensor([1, 5, 5, 9]), 0.3
    mixed = share * nn.functional.one_hot(labels, 10) + (1 - share) * nn.functional.one_hot(labels.flip(0), 10)
    ours = LabelSmoothLoss(label_smooth_val=0.1, mode='original')(logits, mixed, avg_factor=4)
    theirs = SoftTargetCrossEntropy()(logits, mixup_target(labels, 10, share, 0.1))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_the_neck_norms_where_the_families_do():
    maps = (image(2, 6, 3, 4, seed=1), image(2, 6, 3, 4))
    after = fill(classification.PoolingNeck(6, dict(type='LN', eps=1e-6)))
    assert torch.equal(after(maps)[0], after.norm(maps[-1].mean((2, 3))))
    before = fill(classification.PoolingNeck(6, dict(type='BN'))).eval()
    assert relative_error(before(maps)[0], before.norm(maps[-1]).mean((2, 3))) < 1e-6
    assert torch.equal(classification.PoolingNeck(6)(maps)[0], maps[-1].mean((2, 3)))


@needs_mmpretrain
def test_mmpretrain_is_imported_beside_a_transformers_without_what_it_uses(tmp_path):
    (tmp_path / 'transformers.py').touch()
    (tmp_path / 'transformers-5.0.0.dist-info').mkdir()
    (tmp_path / 'transformers-5.0.0.dist-info' / 'METADATA').write_text('Metadata-Version: 2.1\nName: transformers\n'
                                                                       'Version: 5.0.0\n')
    code = 'import mmlk; from mmpretrain.models import ImageClassifier; print(ImageClassifier.__name__)'
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True,
                          env=dict(os.environ, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)])))
    assert done.stdout.split() == ['ImageClassifier'], done.stderr[-2000:]


def test_without_mmpretrain_one_error_says_what_to_install(monkeypatch, capsys):
    for name in {'mmpretrain', 'mmpretrain.datasets', *sys.modules}:
        if name.partition('.')[0] == 'mmpretrain':  # another test may have imported parts of it
            monkeypatch.setitem(sys.modules, name, None)
    config = str(PRETRAIN / 'repvgg-a0_imagenet.py')
    for command in (['train', config], ['test', config, 'x.pth'], ['check-data', config]):
        with pytest.raises(SystemExit):
            main(command)
        error = capsys.readouterr().err
        assert 'a classifier needs mmpretrain' in error and 'tools/install.sh --with pretrain' in error
    with pytest.raises(ImportError, match='pip install onedl-mmpretrain'):
        classification.image_classifier(dict(type='mmlk.RepVGG'))


@needs_mmpretrain
@pytest.mark.parametrize('arguments, said', [
    (['--tta', '--show-dir', 'x'], 'leave out --tta or --show-dir'),
    (['--report', 'told'], '--report: there is a report for segmentors and detectors'),
    (['--out', 'labels'], '--out of a classifier is a .pkl file, got labels')])
def test_options_that_a_classifier_cannot_have(arguments, said, capsys):
    with pytest.raises(SystemExit):
        main(['test', str(PRETRAIN / 'repvgg-a0_imagenet.py'), 'x.pth', *arguments])
    assert said in capsys.readouterr().err


@needs_mmpretrain
@pytest.mark.parametrize('command', [
    ['predict', '{config}', '{weights}', '{image}', '--out', '{folder}/out'],
    ['export', '{config}', '{weights}'],
    ['export', '{config}', '{weights}', '--format', 'torchscript', '--shape', '64x64'],
    ['compare', '{config}'], ['compare', '{config}', '--train'],
    ['demo', '{config}', '{weights}'], ['show-predictions', '{config}', '{weights}', '--out', '{folder}/x.png'],
], ids=' '.join)
def test_commands_of_dense_prediction_refuse_a_classifier(command, tmp_path, monkeypatch, capsys):
    """Before the weights are loaded, which would not fit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('mmlk.cli.prepare.preflight', lambda cfg, splits: None)  # as if the data were there
    monkeypatch.setattr('mmlk.cli.demo.find_spec', lambda name: True)  # and gradio
    torch.save(dict(state_dict=dict(w=torch.ones(1))), 'w.pth')
    Image.new('RGB', (8, 8)).save('a.png')
    with pytest.raises(SystemExit) as ended:
        main([part.format(config=DEMO / 'replknet-tiny_imagenet.py', weights='w.pth', image='a.png', folder=tmp_path)
              for part in command])
    message = capsys.readouterr().err
    said = ('only segmentors and detectors are compared' if command[0] == 'compare' else
            'is the config of a classifier, and this works with segmentors of mmseg and detectors of mmdet only')
    assert ended.value.code == 2 and message.startswith('error: ') and message.count('\n') == 1
    assert 'replknet-tiny_imagenet.py' in message and said in message


# A run of two epochs on 24 images.

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'imagenet'
    write_demo(DemoPlan('imagenet', seed=0, train=24, val=10, size=(32, 32)), folder)
    return folder


@pytest.fixture
def run(data, tmp_path, monkeypatch):
    """Runs a command on the demo's classifier, made smaller."""
    monkeypatch.setattr(ResumableRunner, '_log_env', lambda self, env: None)
    monkeypatch.chdir(tmp_path)

    def call(command, *arguments, config=DEMO / 'replknet-tiny_imagenet.py', work='work', **options):
        settings = {**{f'model.backbone.arch.{key}': str(value).replace(' ', '') for key, value in TINY.items()},
                    'model.neck.channels': 32, 'model.head.in_channels': 32,
                    'train_dataloader.batch_size': 8, 'train_cfg.max_epochs': 2, 'randomness.seed': 0, **options}
        for split in ('train', 'val', 'test'):
            settings[f'{split}_dataloader.dataset.data_root'] = str(data)
        for name, size in (('train', 1), ('val', 1), ('test', 1)):
            settings[f'{name}_dataloader.dataset.pipeline.{size}.scale'] = 32
        main([command, str(config), *map(str, arguments), '--work-dir', work, '--cfg-options',
              *(f'{key}={value}' for key, value in settings.items())])
        return tmp_path / work

    return call


def top1(folder):
    """What the last test or validation gave."""
    lines = [json.loads(line) for path in sorted(folder.rglob('*.json')) for line in path.open()]
    return [line['accuracy/top1'] for line in lines if 'accuracy/top1' in line][-1]


@needs_mmpretrain
def test_from_pretraining_to_a_segmentor(run, tmp_path):
    work = run('train', '--amp')
    checkpoint = work / 'epoch_2.pth'
    saved = read_weights(checkpoint)
    average, last = saved['state_dict'], saved['ema_state_dict']
    key = 'backbone.stages.3.blocks.0.pw1.conv.weight'
    assert not torch.equal(average[key], last[f'module.{key}'])

    # the averaged weights are tested, merged or not, and saved
    accuracy = top1(work)
    assert top1(run('test', checkpoint, '--out', 'out.pkl', '--show-dir', 'shown', work='plain')) == accuracy
    assert len(list(Path('shown').iterdir())) == 10
    with open('out.pkl', 'rb') as file:
        predicted = pickle.load(file)
    assert len(predicted) == 10 and len(predicted[0]['pred_score']) == 5
    assert top1(run('test', checkpoint, '--merge', work='merged')) == accuracy
    assert 0 <= top1(run('test', checkpoint, '--tta', work='tta')) <= 100

    # they load into a backbone by themselves, and into mmseg's model through mmlk.Pretrained
    backbone = RepLKNet(TINY)
    report = weights.load(backbone, checkpoint)
    assert report.complete and not report.left and 'translated' not in report.format
    assert set(report.unexpected) >= {'head.fc.weight', 'neck.norm.running_mean'} and not report.misplaced
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, average[f'backbone.{name}']), name
    cfg = Config.fromfile(str(DEMO / 'upernet_replknet-tiny-pretrained_ade20k.py'))
    assert cfg.model.backbone.init_cfg.checkpoint == 'work_dirs/replknet-tiny_imagenet/epoch_8.pth'
    first = Config.fromfile(str(DEMO / 'replknet-tiny_imagenet.py'))
    assert first.train_cfg.max_epochs == 8 and first.model.backbone.arch == cfg.model.backbone.arch
    from mmengine.registry import MODELS
    with DefaultScope.overwrite_default_scope('mmseg'):
        segmentor = MODELS.build(dict(
            cfg.model, backbone=dict(cfg.model.backbone, arch=TINY, init_cfg=dict(
                type='mmlk.Pretrained', checkpoint=str(checkpoint))),
            decode_head=dict(cfg.model.decode_head, in_channels=TINY['channels']),
            auxiliary_head=dict(cfg.model.auxiliary_head, in_channels=24)))
    segmentor.init_weights()
    assert torch.equal(segmentor.backbone.state_dict()[key[9:]], average[key])
    main(['weights', 'inspect', str(checkpoint)])


@needs_mmpretrain
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(run):
    work = run('train')
    whole = read_weights((work / 'epoch_2.pth').rename('whole.pth').absolute())
    resumed = read_weights(run('train', '--resume') / 'epoch_2.pth')
    for part in ('state_dict', 'ema_state_dict'):
        assert whole[part].keys() == resumed[part].keys()
        assert all(torch.equal(value, resumed[part][key]) for key, value in whole[part].items())


@needs_mmpretrain
def test_the_rate_is_scaled_by_the_batch(run):
    work = run('train', '--auto-scale-lr', **{'train_cfg.max_epochs': 1})
    [log] = work.glob('*/*.log')
    assert 'Scaling the original LR by 0.25' in log.read_text()  # 8 of 32 images


# Data

def config(root, classes=('bar', 'cross', 'disc', 'ring', 'square'), num_classes=5, **changes):
    dataset = dict(type='ImageNet', data_root=str(root), split='train', metainfo=dict(classes=classes),
                   pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')], **changes)
    return Config(dict(
        default_scope='mmpretrain', train_dataloader=dict(dataset=dataset),
        model=dict(type='mmlk.ImageClassifier', head=dict(type='LinearClsHead', num_classes=num_classes),
                   data_preprocessor=dict(num_classes=5))))


@needs_mmpretrain
def test_sound_data_are_counted(data):
    cfg = config(data)
    assert missing(cfg) == conflicts(cfg) == []
    [report] = audit(cfg)
    assert report.counts == dict(classes=5, images=24) and not any(report.problems.values()) and not report.unchecked
    alone = config(data, data_prefix='train')  # a folder in place of a dict
    alone.train_dataloader.dataset.pop('split')
    assert missing(alone) == conflicts(alone) == []


@needs_mmpretrain
def test_imagenet_that_is_missing_is_explained(tmp_path):
    [problem] = missing(load('convnext-t_imagenet'))
    assert 'no folder data/imagenet' in str(problem) and 'ILSVRC2012_img_train.tar' in str(problem)
    assert 'train/<class>/*.JPEG' in str(problem)
    (tmp_path / 'train').mkdir()
    [problem] = missing(config(tmp_path))
    assert f'no file * in folder {tmp_path}/train' in str(problem)
    demo = Config.fromfile(str(DEMO / 'replknet-tiny_imagenet.py'))
    assert 'make_demo_data.py --layout imagenet --out data/demo/imagenet' in str(missing(demo)[0])


@needs_mmpretrain
@pytest.mark.parametrize('changes, said', [
    (dict(classes=('disc', 'ring', 'square', 'bar', 'cross')), 'in alphabetical order: bar, cross, disc, ring'),
    (dict(classes=('bar', 'cross')), 'has 2 classes (bar, cross), but'),
    (dict(num_classes=4), 'model.head.num_classes is 4, but train_dataloader.dataset has 5 classes')])
def test_classes_that_contradict_each_other(data, changes, said):
    [problem] = conflicts(config(data, **changes))
    assert said in str(problem)


@needs_mmpretrain
def test_broken_images_and_labels_are_found(data, tmp_path):
    root = tmp_path / 'data'
    shutil.copytree(data, root)
    image_path = next((root / 'train').glob('*/*.JPEG'))
    image_path.write_bytes(image_path.read_bytes()[:300])
    (root / 'meta').mkdir()
    name = image_path.relative_to(root / 'train').as_posix()
    (root / 'meta' / 'train.txt').write_text(f'{name} 7\n')
    [report] = audit(config(root))
    assert [image_path.name in line for line in report.problems['unreadable image']] == [True]
    assert report.problems['label out of range'] == [f'{image_path} has label 7; the dataset has 5 classes']
    assert '5 of 5 classes have no image' in report.notes[0]


# Other programs

def test_the_official_names_for_timm(tmp_path):
    """A classifier of ConvNeXt-T, saved with the official names, computes the same in timm."""
    backbone, norm, linear = fill(ConvNeXt('T', out_indices=(3, ))), fill(nn.LayerNorm(768)), fill(nn.Linear(768, 5))
    backbone.norm3 = nn.Identity()
    parts = {'backbone.': backbone, 'neck.norm.': norm, 'head.fc.': linear}
    torch.save(dict(state_dict={prefix + key: value for prefix, part in parts.items()
                                for key, value in part.state_dict().items()}), tmp_path / 'epoch_1.pth')
    main(['weights', 'save', str(tmp_path / 'epoch_1.pth'), str(tmp_path / 'out.safetensors'), '--official'])
    model = timm.create_model('convnext_tiny', num_classes=5,
                              pretrained_cfg_overlay=dict(file=str(tmp_path / 'out.safetensors'), num_classes=5),
                              pretrained=True).eval()
    norm.eps = 1e-6
    x = image(1, 3, 64, 64)
    with torch.no_grad():
        expected = linear(norm(backbone.eval()(x)[-1].mean((2, 3))))
        assert relative_error(model(x), expected) < 1e-5
    assert weights.load(ConvNeXt('T'), tmp_path / 'out.safetensors').complete
    with pytest.raises(weights.WeightsError, match='is not a classifier with a backbone'):
        weights.save(tmp_path / 'out.safetensors', tmp_path / 'again.safetensors', official=True)
