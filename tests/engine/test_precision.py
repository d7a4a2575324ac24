"""Mixed precision stays near float32 over fifty steps, and a compiled model is the model."""
import argparse
import math

import pytest
import torch
import torch._dynamo
from mmengine.runner import Runner

from mmlk.datasets.layouts import DemoPlan, write_demo
from tests.engine.test_distributed import assert_same_state, make_certain, read
from tests.test_tools import tool
from tests.test_training import shrunk

STEPS = 50
# Largest distance of the mean loss of ten successive steps from float32's, relative to it.
BOUNDS = {'bfloat16': 0.01, 'float16': 0.01}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('precision')
    write_demo(DemoPlan('ade20k', seed=0, train=8, val=2, size=(64, 64)), folder)
    return folder


def tiny(data, work_dir, iterations):
    cfg = shrunk('upernet_replknet31b_ade20k', 'ade20k', data, work_dir)
    make_certain(cfg)
    cfg.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05))
    cfg.train_cfg.update(max_iters=iterations, val_interval=iterations)
    cfg.default_hooks.checkpoint.interval = iterations
    cfg.experiment_name = work_dir.name
    return cfg


def losses(cfg):
    runner = Runner.from_cfg(cfg)
    runner.train()
    history, _ = runner.message_hub.log_scalars['train/loss'].data
    assert len(history) == STEPS
    state = runner.model.state_dict()
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert all(tensor.dtype != torch.bfloat16 and tensor.dtype != torch.float16 for tensor in state.values())
    return torch.as_tensor(history).double()


@pytest.fixture(scope='module')
def in_float32(data, tmp_path_factory):
    return losses(tiny(data, tmp_path_factory.mktemp('float32'), STEPS))


@pytest.mark.parametrize('dtype', BOUNDS)
def test_fifty_steps_stay_near_float32(data, tmp_path, in_float32, dtype):
    cfg = tiny(data, tmp_path / dtype, STEPS)
    if torch.cuda.is_available():
        cfg.optim_wrapper.dtype = dtype
    elif dtype == 'float16':
        pytest.skip('float16 is for a GPU, and there is none')
    tool('train').apply_options(cfg, argparse.Namespace(amp=True, auto_scale_lr=False, resume=None))
    mixed = losses(cfg)
    assert mixed.isfinite().all() and not torch.equal(mixed, in_float32)
    assert in_float32[-10:].mean() < 0.9 * in_float32[:10].mean(), 'the run must learn for its losses to tell anything'
    windows = [series.unfold(0, 10, 1).mean(1) for series in (mixed, in_float32)]
    assert ((windows[0] - windows[1]).abs() / windows[1]).max() < BOUNDS[dtype]


def test_bfloat16_autocast_reaches_the_backbone(data, tmp_path):
    cfg = tiny(data, tmp_path / 'work', 1)
    cfg.optim_wrapper.type = 'mmlk.BFloat16OptimWrapper'
    runner = Runner.from_cfg(cfg)
    seen = []
    runner.model.backbone.register_forward_hook(lambda module, args, out: seen.append((module.training, out[0].dtype)))
    runner.train()
    assert (True, torch.bfloat16) in seen and (False, torch.float32) in seen and len(set(seen)) == 2


@pytest.mark.parametrize('name', ['mask_rcnn_replknet31b_coco', 'cascade_mask_rcnn_replknet31b_coco',
                                  'fcos_replknet31b_coco'])
def test_detectors_train_and_test_in_bfloat16(name, tmp_path):
    """mmcv compiles RoIAlign and suppression of boxes for float32 alone. Which boxes are sampled hangs on rounding, so
    the first losses before that are compared."""
    write_demo(DemoPlan('coco', seed=0, train=4, val=2, size=(64, 64)), tmp_path / 'data')
    first = {}
    for wrapper in ('OptimWrapper', 'mmlk.BFloat16OptimWrapper'):
        cfg = shrunk(name, 'coco', tmp_path / 'data', tmp_path / wrapper)
        cfg.optim_wrapper.type = wrapper
        # FCOS's last map would come from one pixel, where oneDNN leaves bfloat16's weight gradient unwritten under AMX.
        cfg.model.data_preprocessor.pad_size_divisor = 128
        cfg.experiment_name = f'{name}-{wrapper}'
        runner = Runner.from_cfg(cfg)
        runner.train()
        scalars = {key: buffer.data[0] for key, buffer in runner.message_hub.log_scalars.items() if 'loss' in key}
        assert all(math.isfinite(value) for values in scalars.values() for value in values)
        assert all(value.isfinite().all() for value in runner.model.state_dict().values())
        first[wrapper] = {key: values[0] for key, values in scalars.items()}
    mixed, expected = first['mmlk.BFloat16OptimWrapper'], first['OptimWrapper']
    early = [key for key in expected if 'rpn' in key] or list(expected)
    assert mixed != expected and len(early) >= 2
    assert {key: mixed[key] for key in early} == pytest.approx({key: expected[key] for key in early}, rel=0.03)


def test_compile_trains_and_tests(data, tmp_path):
    """A step of checkpointed blocks and a test, equal to the same without. aot_eager compiles sooner than inductor, and
    that something was compiled is asked of what counts it."""
    results, compiled_graphs = {}, {}
    for name, settings in dict(eager={}, compiled=dict(compile=dict(backend='aot_eager'))).items():
        cfg = tiny(data, tmp_path / name, 1)
        assert cfg.model.backbone.with_cp
        cfg.model.backbone.update(out_indices=(1, ), arch=dict(cfg.model.backbone.arch, layers=(1, 1, 1, 1)))
        cfg.model.decode_head = dict(cfg.model.auxiliary_head, in_index=0, in_channels=16)
        cfg.model.pop('auxiliary_head')
        # in proportion to the gradient, so that rounding does not turn a sign
        cfg.optim_wrapper.optimizer = dict(type='SGD', lr=0.1)
        cfg.merge_from_dict(settings)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        runner = Runner.from_cfg(cfg)
        before = {key: value.clone() for key, value in runner.model.state_dict().items()}
        runner.train()
        compiled_graphs[name] = torch._dynamo.utils.counters['stats']['unique_graphs']
        cfg.merge_from_dict(dict(load_from=str(tmp_path / name / 'iter_1.pth'), experiment_name=f'{name}-test'))
        results[name] = read(tmp_path / name, 1)['state_dict'], Runner.from_cfg(cfg).test()
    (state, metrics), (expected, expected_metrics) = results['compiled'], results['eager']
    assert compiled_graphs['compiled'] > 0 == compiled_graphs['eager']
    assert_same_state(state, expected, 2e-5)
    # and the step was longer than what is tolerated, so that another gradient would have been seen
    steps = [(expected[key] - before[key]).abs().max() for key in expected if key.endswith('conv.weight')]
    assert torch.stack(steps).median() > 1e-4
    assert all(math.isfinite(value) for value in expected_metrics.values())
    assert metrics == pytest.approx(expected_metrics, abs=0.011)
