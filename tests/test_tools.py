"""The command-line tools, run as a person runs them, on tiny scenes and a tiny model."""
import argparse
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import DATASETS, MODELS, OPTIM_WRAPPERS, DefaultScope
from mmengine.runner import FlexibleRunner
from PIL import Image

from mmlk._types import type_of
from mmlk.datasets.layouts import DemoPlan, write_demo
from mmlk.deploy import merging
from mmlk.deploy.merging import merge_checkpoint
from mmlk.engine import ResumableRunner
from mmlk.weights import save
from mmlk.weights.read import read_weights
from tests.utils import run_script

REPO = Path(__file__).resolve().parent.parent
UPERNET = 'configs/demo/upernet_replknet-tiny_ade20k.py'
MASK_RCNN = 'configs/demo/mask_rcnn_replknet-tiny_coco.py'


def python(*args, expect=0, **env):
    """Run a Python program in the checkout, by a new interpreter; its output when it ends as expected."""
    done = subprocess.run([sys.executable, *map(str, args)], cwd=REPO, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, env={**os.environ, 'OMP_NUM_THREADS': '1', **env})
    assert done.returncode == expect, f'exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}'
    return done.stdout + done.stderr


def run(script, *args, expect=0):
    """The same by a process that has imported what a tool imports, which takes longer than the tiny runs below."""
    code, out = run_script(REPO / script, *args, cwd=REPO)
    assert code == expect, f'exit {code}\n{out[-6000:]}'
    return out


def data_options(layout, data):
    options = []
    for split in ('train', 'val', 'test'):
        options.append(f'{split}_dataloader.dataset.data_root={data}/')
        if layout == 'coco' and split != 'train':
            options.append(f'{split}_evaluator.ann_file={data}/annotations/instances_val2017.json')
    return options


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tools')
    for layout in ('ade20k', 'coco'):
        write_demo(DemoPlan(layout, seed=0, train=6, val=3, size=(64, 80)), folder / layout)
    return folder


@pytest.fixture(scope='module')
def segmentor(work):
    """A UperNet after four iterations: its work dir, with BatchNorm statistics that have moved."""
    out = python('tools/train.py', UPERNET, '--work-dir', work / 'seg', '--cfg-options', 'train_cfg.max_iters=4',
                 'train_cfg.val_interval=4', 'default_hooks.checkpoint.interval=4', 'default_hooks.logger.interval=1',
                 'train_dataloader.batch_size=2', *data_options('ade20k', work / 'ade20k'))
    assert len(re.findall(r'Iter\(train\) +\[\d/4\]', out)) == 4 and 'mIoU' in out
    return work / 'seg'


def metrics(work_dir, *names):
    """Metrics that the newest test of this work dir wrote."""
    newest = max(work_dir.glob('*/*.json'), key=lambda p: p.stat().st_mtime)
    values = json.loads(newest.read_text())
    return [values[name] for name in names]


def reported(folder):
    """What a test has reported into a folder."""
    facts = json.loads((folder / 'report.json').read_text(encoding='utf-8'))
    assert facts['images'] == 3 and all((folder / name).stat().st_size for name in facts['files'])
    return facts['results']


def test_merged_test_equals_and_predictions_are_written(segmentor, work):
    checkpoint = segmentor / 'iter_4.pth'
    options = data_options('ade20k', work / 'ade20k')
    found = {}
    report = ['--report', work / 'report']
    for name, extra in dict(plain=[], merged=['--merge'], fast=['--optimize', *report]).items():
        out = run('tools/test.py', UPERNET, checkpoint, '--work-dir', work / name, '--out', work / name / 'png',
                  '--show-dir', work / name / 'show', *extra, '--cfg-options', *options)
        assert ('parallel branches merged' in out) is (name != 'plain')
        assert ('in inference form: ' in out and 'feed-forward blocks' in out) is (name == 'fast')
        found[name] = [np.array(Image.open(path)) for path in sorted((work / name / 'png').glob('*.png'))]
        assert len(list((work / name / 'show').glob('*.png'))) == 3
    assert len(found['plain']) == 3 and all(p.shape == (64, 80) for p in found['plain'])
    for name in ('merged', 'fast'):
        for plain, other in zip(found['plain'], found[name]):
            assert (plain != other).mean() < 0.002
        assert metrics(work / 'plain', 'aAcc') == pytest.approx(metrics(work / name, 'aAcc'), abs=0.2)
    told = reported(work / 'report')['pixels']
    names = 'aAcc', 'mIoU', 'mAcc'
    assert [round(100 * told['metrics'][name], 2) for name in names] == pytest.approx(metrics(work / 'fast', *names))
    pixels = sum(one['count'] for one in told['calibration']['bins'])
    assert pixels == sum(one['pixels'] for one in told['classes']) > 0 and 0 < told['metrics']['ECE'] < 1


def test_a_file_of_another_format_or_of_the_hub_tests_as_the_checkpoint(segmentor, work):
    """A safetensors file, and the same by its name on the Hub, from a cache laid out as huggingface_hub lays it out."""
    pytest.importorskip('huggingface_hub', reason='the extra hub is not installed')
    checkpoint, commit = segmentor / 'iter_4.pth', '0' * 40
    repo = work / 'hf' / 'hub' / 'models--me--tiny'
    (repo / 'refs').mkdir(parents=True)
    (repo / 'refs' / 'main').write_text(commit)
    cached = repo / 'snapshots' / commit / 'tiny.safetensors'
    cached.parent.mkdir(parents=True)
    save(checkpoint, cached)
    offline = dict(HF_HOME=str(work / 'hf'), HF_HUB_OFFLINE='1')  # read when huggingface_hub is imported
    found = []
    for name, source, start, env in (('pth', checkpoint, run, {}), ('safetensors', cached, run, {}),
                                     ('hub', 'hf-hub:me/tiny/tiny.safetensors', python, offline)):
        out = start('tools/test.py', UPERNET, source, '--work-dir', work / 'sources' / name, '--cfg-options',
                    *data_options('ade20k', work / 'ade20k'), **env)
        assert 'mIoU' in out and 'unexpected key' not in out and 'missing keys' not in out
        found.append(metrics(work / 'sources' / name, 'aAcc', 'mIoU', 'mAcc'))
    assert found[0] == found[1] == found[2]


# Hooks and metrics as configs may name them, in a Python config over the demo's.
FORMS = {
    'nothing, and scopes': ("custom_hooks = None\n"
                            "test_evaluator = dict(_delete_=True, type='mmseg.IoUMetric', iou_metrics=['mIoU'])\n"),
    'classes, averaged': ("from mmengine.hooks import EMAHook\nfrom mmseg.evaluation import IoUMetric\n"
                          "class Own(IoUMetric):\n    pass\n"
                          "custom_hooks = [dict(type=EMAHook, momentum=0.1, update_buffers=True)]\n"
                          "test_evaluator = dict(_delete_=True, metrics=[dict(type=Own, iou_metrics=['mIoU'])])\n"
                          "del EMAHook, IoUMetric, Own\n"),
    'paths, averaged': ("custom_hooks = [dict(type='mmengine.hooks.EMAHook')]\n"
                        "test_evaluator = [dict(type='mmseg.evaluation.IoUMetric', iou_metrics=['mIoU'])]\n"),
}


@pytest.mark.parametrize('form', [
    form if form == 'classes, averaged' else pytest.param(form, marks=pytest.mark.slow) for form in FORMS])
def test_hooks_and_metrics_of_any_form(form, segmentor, work, tmp_path):
    """Predictions are written, and a merged model, averaged or not, tests as the plain one does."""
    config = tmp_path / 'config.py'
    config.write_text(f"_base_ = '{REPO / UPERNET}'\n{FORMS[form]}")
    options = data_options('ade20k', work / 'ade20k')
    for path, extra in ((UPERNET, []), (config, ['--merge'])):
        run('tools/test.py', path, segmentor / 'iter_4.pth', '--work-dir', tmp_path / 'work', '--out',
            tmp_path / Path(path).stem, *extra, '--cfg-options', *options)
    plain, merged = ([np.array(Image.open(path)) for path in sorted((tmp_path / name).glob('*.png'))]
                     for name in (Path(UPERNET).stem, 'config'))
    assert len(plain) == len(merged) == 3
    assert all((one != other).mean() < 0.002 for one, other in zip(plain, merged))


def test_options_of_test_reach_the_config():
    options = dict(show_dir=None, out=None, report=None, tta=False, merge=False, optimize=None)

    def apply(change, config=UPERNET, **given):
        cfg = Config.fromfile(str(REPO / config))
        cfg.merge_from_dict(change)
        tool('test').apply_options(cfg, argparse.Namespace(**{**options, **given}))
        return cfg

    hook = dict(type='mmlk.MergeBranchesHook')
    assert apply({'custom_hooks': None}, merge=True).custom_hooks == [hook]
    fast = dict(type='mmlk.OptimizeHook', dtype='bf16')
    assert apply({'custom_hooks': [hook]}, optimize='bf16').custom_hooks == [hook, fast]
    metrics = [dict(type='mmseg.IoUMetric'), dict(type='CityscapesMetric', output_dir='theirs')]
    for evaluator in (metrics, tuple(metrics), dict(metrics=metrics)):
        found = apply({'test_evaluator': evaluator}, out='here').test_evaluator
        found = found['metrics'] if isinstance(found, dict) else found
        assert [metric['output_dir'] for metric in found] == ['here', 'theirs'] and found[0]['keep_results']


BOXES = {'model.roi_head.mask_head': None, 'test_evaluator.metric': 'bbox'}


@pytest.mark.parametrize('change', [{'model.roi_head.mask_head': None}, {'test_evaluator.metric': 'bbox'}, {}])
def test_masks_have_no_augmentation_by_default(change, capsys):
    cfg = Config.fromfile(str(REPO / MASK_RCNN))
    cfg.merge_from_dict(change)
    with pytest.raises(SystemExit):
        tool('test').apply_options(cfg, argparse.Namespace(show_dir=None, out=None, report=None, tta=True, merge=False,
                                                           optimize=None))
    assert 'error: --tta needs tta_model and tta_pipeline in the config' in capsys.readouterr().err


def test_a_detector_of_boxes_is_tested_with_mmdets_augmentation(work):
    """Each image as it is and mirrored, the boxes suppressed together."""
    cfg = Config.fromfile(str(REPO / MASK_RCNN))
    cfg.merge_from_dict(BOXES)
    for key in ('ann_file', 'data_root'):
        cfg.test_dataloader.dataset[key] = dict(ann_file='annotations/instances_val2017.json',
                                                data_root=f"{work / 'coco'}/")[key]
    steps = len(cfg.test_dataloader.dataset.pipeline)
    tool('test').apply_options(cfg, argparse.Namespace(show_dir=None, out=None, report=None, tta=True, merge=False,
                                                           optimize=None))
    assert cfg.model.type == 'DetTTAModel' and cfg.model.module.type == 'MaskRCNN'
    assert len(cfg.test_dataloader.dataset.pipeline) == steps
    with DefaultScope.overwrite_default_scope('mmdet'):
        data = DATASETS.build(cfg.test_dataloader.dataset)[0]
        model = MODELS.build(cfg.model).eval()
    plain, mirrored = data['inputs']
    assert len(data['inputs']) == 2 and torch.equal(plain, mirrored.flip(2)) is not torch.equal(plain, mirrored)
    assert sorted(sample.flip for sample in data['data_samples']) == [False, True]
    found, = model.test_step(dict(inputs=[[image] for image in data['inputs']],
                                  data_samples=[[sample] for sample in data['data_samples']]))
    assert 'masks' not in found.pred_instances and found.pred_instances.bboxes.shape[1] == 4


def test_predictions_that_nothing_would_write_are_refused(capsys):
    cfg = Config.fromfile(str(REPO / UPERNET))
    cfg.test_evaluator = dict(type='CityscapesMetric', output_dir='theirs')
    with pytest.raises(SystemExit):
        tool('test').apply_options(cfg, argparse.Namespace(show_dir=None, out='here', report=None, tta=False,
                                                           merge=False, optimize=None))
    assert 'error: --out of a segmentor is written by IoUMetric' in capsys.readouterr().err


def test_merge_tool_writes_a_checkpoint_and_a_config_that_loads_it(segmentor, work):
    out = run('tools/merge.py', UPERNET, segmentor / 'iter_4.pth', work / 'merge' / 'merged.pth')
    assert '5 blocks merged' in out
    difference, = re.findall(r'largest difference ([\d.e+-]+)', out)
    assert float(difference) < 1e-4
    state = torch.load(work / 'merge' / 'merged.pth', weights_only=True)
    assert any('lkb_reparam' in key for key in state['state_dict'])
    assert not any('lkb_origin' in key for key in state['state_dict'])
    assert state['meta']['dataset_meta']['classes'][:2] == ['ground', 'disc']
    out = run('tools/test.py', work / 'merge' / 'merged.py', work / 'merge' / 'merged.pth', '--work-dir',
              work / 'merge' / 'test', '--tta', '--report', work / 'merge' / 'report', '--cfg-options',
              *data_options('ade20k', work / 'ade20k'))
    told = reported(work / 'merge' / 'report')['pixels']
    assert [round(100 * told['metrics']['mIoU'], 2)] == pytest.approx(metrics(work / 'merge' / 'test', 'mIoU'))
    assert 'test-time augmentation' in told['calibration']['missing'] and 'ECE' not in told['metrics']
    assert 'mIoU' in out and 'unexpected key' not in out and 'missing keys' not in out


def test_merge_takes_averaged_weights_and_leaves_other_files(segmentor, tmp_path):
    """mmengine's EMAHook leaves the average under state_dict, and the weights that were trained beside it."""
    content = dict(read_weights(segmentor / 'iter_4.pth'))
    state = content['state_dict']
    trained = {f'module.{name}': value + 1 if value.is_floating_point() else value for name, value in state.items()}
    torch.save(dict(state_dict=state, ema_state_dict=dict(trained, steps=torch.tensor(4))), tmp_path / 'averaged.pth')
    cfg = Config.fromfile(str(REPO / UPERNET))
    cfg.custom_hooks = [dict(type=EMAHook, momentum=0.1)]
    plain = merge_checkpoint(cfg, str(segmentor / 'iter_4.pth'), str(tmp_path / 'plain' / 'x.pth'))
    averaged = merge_checkpoint(cfg, str(tmp_path / 'averaged.pth'), str(tmp_path / 'y.pth'))
    assert 'averaged weights' in str(averaged) and 'averaged weights' not in str(plain)
    one, other = (torch.load(path, weights_only=True)['state_dict'] for path in (plain.checkpoint, averaged.checkpoint))
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
    hook, = Config.fromfile(averaged.config).custom_hooks  # the class is written as what finds it again
    assert type_of(hook, 'HOOKS') is EMAHook and hook.momentum == 0.1

    merge_checkpoint(cfg, str(tmp_path / 'averaged.pth'), str(tmp_path / 'y.pth'))  # its own files it may overwrite
    (tmp_path / 'mine.py').write_text('x = 1\n')
    with pytest.raises(ValueError, match='mine.py, .* was not written by this tool; write to another name'):
        merge_checkpoint(cfg, str(tmp_path / 'averaged.pth'), str(tmp_path / 'mine.pth'))
    assert (tmp_path / 'mine.py').read_text() == 'x = 1\n' and not (tmp_path / 'mine.pth').exists()


@pytest.mark.parametrize('place', [0, -1])
def test_a_nan_in_any_output_is_seen(segmentor, tmp_path, monkeypatch, place):
    """``max`` over a list keeps a NaN that comes first, and loses any other."""
    whole = merging._outputs

    def outputs(model, inputs):
        found = whole(model, inputs)
        if any('lkb_reparam' in name for name, _ in model.named_modules()):
            found[place] = found[place] * torch.nan
        return found

    monkeypatch.setattr(merging, '_outputs', outputs)
    with pytest.raises(ValueError, match='differ by nan .*; nothing was written'):
        merge_checkpoint(Config.fromfile(str(REPO / UPERNET)), str(segmentor / 'iter_4.pth'), str(tmp_path / 'x.pth'))
    assert not list(tmp_path.iterdir())


def test_merge_tool_refuses_and_writes_nothing(segmentor, work):
    checkpoint = segmentor / 'iter_4.pth'
    assert 'is the input itself' in run('tools/merge.py', UPERNET, checkpoint, checkpoint, expect=2)
    out = run('tools/merge.py', UPERNET, checkpoint, work / 'never.pth', '--tolerance', '0', expect=2)
    assert 'nothing was written' in out and not list(work.glob('never*'))


def test_a_checkpoint_of_another_model_is_refused_not_tested(segmentor, work):
    state = read_weights(segmentor / 'iter_4.pth')['state_dict']
    state.pop('backbone.stages.1.blocks.0.pw1.conv.weight')
    torch.save(dict(state_dict=state), work / 'lacking.pth')
    out = run('tools/test.py', UPERNET, work / 'lacking.pth', '--work-dir', work / 'lacking', '--cfg-options',
              *data_options('ade20k', work / 'ade20k'), expect=2)
    assert 'backbone.stages.1.blocks.0.pw1.conv.weight' in out and 'aAcc:' not in out and 'Traceback' not in out


def test_resume_goes_on_where_it_stopped(segmentor, work):
    shutil.copytree(segmentor, work / 'resumed')
    options = ['--cfg-options', 'train_cfg.max_iters=6', 'train_cfg.val_interval=6', 'train_dataloader.batch_size=2',
               'default_hooks.logger.interval=1', *data_options('ade20k', work / 'ade20k')]
    (work / 'resumed' / 'last_checkpoint').write_text(str(work / 'resumed' / 'iter_4.pth'))
    out = run('tools/train.py', UPERNET, '--work-dir', work / 'resumed', '--resume', *options)
    assert re.findall(r'Iter\(train\) +\[(\d)/6\]', out) == ['5', '6']


@pytest.mark.parametrize('fault, said', [
    ('label', r'annotations/training/\S+png holds label 98 after loading; the segmentor has classes 0 to 5'),
    ('image', r'images/training/\S+jpg (is truncated|cannot be read)'),
    ('arch', r"c\.py: unknown arch '32B' of RepLKNet"),
])
def test_bad_input_ends_a_run_in_one_message(work, fault, said):
    data = work / fault
    shutil.copytree(work / 'ade20k', data)
    if fault == 'label':
        for path in (data / 'annotations' / 'training').iterdir():
            Image.new('L', (80, 64), 99).save(path)
    else:
        for path in (data / 'images' / 'training').iterdir():
            path.write_bytes(path.read_bytes()[:-400])
    cfg = Config.fromfile(str(REPO / UPERNET))
    cfg.model.backbone.arch = '32B' if fault == 'arch' else cfg.model.backbone.arch
    cfg.dump(data / 'c.py')
    out = run('tools/train.py', data / 'c.py', '--work-dir', data / 'work', '--cfg-options',
              'train_cfg.max_iters=2', 'train_dataloader.batch_size=2', *data_options('ade20k', data), expect=2)
    errors = [line for line in out.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1 and re.search(said, errors[0]), out[-3000:]
    assert 'Traceback' not in out


def test_a_killed_training_ends_as_one_that_was_not(work):
    options = ['--cfg-options', 'randomness.seed=3', 'train_cfg.max_iters=8', 'train_cfg.val_interval=8',
               'default_hooks.checkpoint.interval=2', 'train_dataloader.batch_size=2', 'train_dataloader.num_workers=2',
               'model.backbone.drop_path_rate=0.3', *data_options('ade20k', work / 'ade20k')]
    run('tools/train.py', UPERNET, '--work-dir', work / 'unkilled', *options)
    command = [sys.executable, 'tools/train.py', UPERNET, '--work-dir', str(work / 'killed'), *options]
    process = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               env={**os.environ, 'OMP_NUM_THREADS': '1'})
    for line in process.stdout:
        if 'Saving checkpoint at 6 iterations' in line:
            process.kill()
    assert process.wait() == -signal.SIGKILL
    newest = work / 'killed' / 'iter_4.pth'
    for path in (work / 'killed').glob('iter_*.pth'):
        read_weights(path)
    newest.write_bytes(newest.read_bytes()[:-1000])  # and damaged on top
    (work / 'killed' / 'iter_6.pth').unlink(missing_ok=True)
    out = run('tools/train.py', UPERNET, '--work-dir', work / 'killed', '--resume', *options)
    assert 'iter_4.pth is truncated' in out and 'iter_2.pth instead' in out and 'resumed epoch: 0, iter: 2' in out
    states = [read_weights(work / name / 'iter_8.pth')['state_dict'] for name in ('unkilled', 'killed')]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize('toolbox', ['mmseg', 'mmdet'])
def test_stock_tools_run_our_configs(toolbox, work):
    tools = Path(__import__(toolbox).__file__).parent / '.mim' / 'tools'
    if not tools.is_dir():
        pytest.skip(f'{toolbox} was installed without its tools')
    if toolbox == 'mmseg':
        config, layout = UPERNET, 'ade20k'
        options = ['train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2']
    else:
        config, layout = MASK_RCNN, 'coco'
        options = ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'default_hooks.checkpoint.interval=1']
    options = ['--cfg-options', *options, 'train_dataloader.batch_size=3', *data_options(layout, work / layout)]
    python(tools / 'train.py', config, '--work-dir', work / toolbox, *options)
    checkpoint = Path((work / toolbox / 'last_checkpoint').read_text().strip())
    out = python(tools / 'test.py', config, checkpoint, '--work-dir', work / toolbox / 'test', *options)
    assert ('mIoU' if toolbox == 'mmseg' else 'coco/bbox_mAP') in out
    if toolbox == 'mmdet':  # and our own test tool on the same detector, merged, with its predictions kept
        out = run('tools/test.py', config, checkpoint, '--work-dir', work / 'det_test', '--merge', '--out',
                  work / 'det_test' / 'predictions.pkl', '--report', work / 'det_report', '--show-dir',
                  os.path.relpath(work / 'shown', REPO), *options)
        assert 'parallel branches merged' in out and (work / 'det_test' / 'predictions.pkl').stat().st_size > 0
        assert len(list((work / 'shown').glob('*.jpg'))) == 3
        told = reported(work / 'det_report')
        for kind in ('bbox', 'segm'):
            expected = metrics(work / 'det_test', f'coco/{kind}_mAP', f'coco/{kind}_mAP_50')
            assert [round(told[kind]['metrics'][name], 3) for name in ('AP', 'AP50')] == pytest.approx(expected)


def tool(name):
    """The module of a command, to call its functions."""
    return importlib.import_module(f'mmlk.cli.{name}')


def test_options_of_train_reach_the_config(monkeypatch):
    train = tool('train')
    options = dict(amp=True, auto_scale_lr=True, resume='auto')
    monkeypatch.setattr('mmengine.device.get_device', lambda: 'cuda')
    cfg = Config.fromfile(str(REPO / UPERNET))
    train.apply_options(cfg, argparse.Namespace(**options))
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.loss_scale) == ('AmpOptimWrapper', 'dynamic')
    assert cfg.auto_scale_lr.enable and cfg.resume and cfg.load_from is None


@pytest.mark.parametrize('runner, last, resume, kept', [
    (None, False, 'auto', True), (None, True, 'auto', True),  # ResumableRunner chooses by itself
    ('mmlk.ResumableRunner', True, 'auto', True), (ResumableRunner, True, 'auto', True),
    (type('Derived', (ResumableRunner, ), {}), True, 'auto', True), (FlexibleRunner, True, True, False),
    ('FlexibleRunner', False, None, True), ('FlexibleRunner', True, True, False)])
def test_resume_keeps_load_from_for_a_run_that_has_no_checkpoint(tmp_path, runner, last, resume, kept):
    cfg = Config(dict(work_dir=str(tmp_path), load_from=str(tmp_path / 'w.pth'), **({} if runner is None else dict(
        runner_type=runner))))
    torch.save(dict(state_dict=dict(w=torch.ones(1))), cfg.load_from)
    if last:
        (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_1.pth'))
    tool('train').apply_options(cfg, argparse.Namespace(amp=False, auto_scale_lr=False, resume='auto'))
    assert cfg.get('resume') == resume and (cfg.load_from is not None) is kept


def test_amp_on_a_cpu_is_bfloat16(monkeypatch):
    train = tool('train')
    monkeypatch.setattr('mmengine.device.get_device', lambda: 'cpu')
    cfg = Config.fromfile(str(REPO / UPERNET))
    train.apply_options(cfg, argparse.Namespace(amp=True, auto_scale_lr=False, resume=None))
    assert cfg.optim_wrapper.type == 'mmlk.BFloat16OptimWrapper' and 'loss_scale' not in cfg.optim_wrapper


class Odd(AmpOptimWrapper):
    """A wrapper of somebody's own."""


@pytest.mark.parametrize('kind', ['OptimWrapper', 'mmengine.OptimWrapper', 'mmengine.optim.OptimWrapper', OptimWrapper,
                                  'AmpOptimWrapper', 'mmengine.AmpOptimWrapper', AmpOptimWrapper])
def test_amp_takes_the_wrapper_in_any_form(monkeypatch, kind):
    train = tool('train')
    for device, expected in dict(cpu='mmlk.BFloat16OptimWrapper', cuda='AmpOptimWrapper').items():
        monkeypatch.setattr('mmengine.device.get_device', lambda: device)
        cfg = Config.fromfile(str(REPO / UPERNET))
        cfg.optim_wrapper.update(type=kind, **(dict(loss_scale=512.0, dtype='float16') if 'Amp' in str(kind) else {}))
        train.apply_options(cfg, argparse.Namespace(amp=True, auto_scale_lr=False, resume=None))
        assert cfg.optim_wrapper.type == expected
        given = {key: value for key, value in cfg.optim_wrapper.items() if key != 'optimizer'}
        if device == 'cpu':
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
            given.pop('constructor', None), given.pop('paramwise_cfg', None)
            assert type(OPTIM_WRAPPERS.build(dict(given, optimizer=optimizer))).__name__ == 'BFloat16OptimWrapper'
        else:
            assert given['loss_scale'] == (512.0 if 'Amp' in str(kind) else 'dynamic')


@pytest.mark.parametrize('device, change, problem', [
    ('cuda', {'optim_wrapper.type': Odd}, '--amp works with OptimWrapper, the config has Odd'),
    ('mps', {}, "--amp needs a CPU or a GPU: .* does not run on this machine's mps"),
    ('cuda', {'optim_wrapper.type': 'ApexOptimWrapper'}, '--amp works with OptimWrapper, the config has ApexOptim'),
    ('cuda', {'auto_scale_lr': None}, '--auto-scale-lr needs auto_scale_lr = '),
])
def test_options_that_cannot_be_honoured_are_refused(monkeypatch, capsys, device, change, problem):
    train = tool('train')
    monkeypatch.setattr('mmengine.device.get_device', lambda: device)
    cfg = Config.fromfile(str(REPO / UPERNET))
    cfg.merge_from_dict(change)
    with pytest.raises(SystemExit):
        train.apply_options(cfg, argparse.Namespace(amp=True, auto_scale_lr=True, resume=None))
    assert re.search(problem, capsys.readouterr().err)


def test_what_is_missing_ends_in_one_message(work):
    for arguments, problem in [
        (['tools/train.py', 'configs/upernet_replknet31b_ade20k.py', '--cfg-options',
          *data_options('ade20k', work / 'nowhere')], r'nowhere[\s\S]*ADEChallengeData2016\.zip'),
        (['tools/merge.py', UPERNET, work / 'no.pth', work / 'out.pth'],
         'error: no weights .*there is no file .*no.pth'),
        (['tools/train.py', 'configs/no.py'], 'error: no config at configs/no.py'),
        (['tools/train.py', UPERNET, '--resume', work / 'no.pth'], 'error: no weights .*there is no file .*no.pth'),
    ]:
        out = run(*arguments, expect=2)
        assert re.search(problem, out), out
        assert 'Traceback' not in out
    assert not (REPO / 'work_dirs' / 'no').exists()
