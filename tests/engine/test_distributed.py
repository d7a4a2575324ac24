"""Several processes on a CPU: equal to one process on the same global batch, and ended by the first that dies."""
import copy
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType

from mmlk.datasets.layouts import DemoPlan, write_demo
from mmlk.engine import BatchSizeHook, CheckpointError, FSDPStrategy
from mmlk.cli.prepare import build_runner
from mmlk.engine.distributed import CPUDistributedDataParallel, CPUSyncBatchNorm, first_node, read_slurm, use_gloo
from mmlk.registry import MODELS
from mmlk.weights import WeightsError
from tests.engine.toy import forked
from tests.test_training import CONFIGS, shrink_model, shrunk
from tests.utils import fill, image, relative_error, run_script

REPO = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(autouse=True, scope='module')
def _no_resolver():
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv('GLOO_SOCKET_IFNAME', 'lo')  # gloo would ask a resolver for the machine's own name
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    yield
    monkeypatch.undo()


def free_port():
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return str(server.getsockname()[1])


def start(*command, **env):
    env['PYTHONPATH'] = os.pathsep.join(filter(None, [env.get('PYTHONPATH'), str(REPO), os.environ.get('PYTHONPATH')]))
    return subprocess.Popen(list(map(str, command)), cwd=REPO, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, env={**os.environ, **env})


def end(*jobs, timeout=200):
    """Exit codes and outputs; jobs that hang are told to end their processes, and fail the test."""
    try:
        outputs = [job.communicate(timeout=timeout)[0] for job in jobs]
    finally:
        for job in jobs:
            if job.poll() is None:
                job.terminate()  # torchrun ends its processes then
                job.communicate()
    return [job.returncode for job in jobs], outputs


def bash(script, *arguments, **env):
    return start('bash', f'tools/{script}', *arguments, PORT=env.pop('PORT', None) or free_port(), **env)


# Statistics of a batch in uneven shares

CASES = {
    'default': dict(),
    'no affine': dict(affine=False),
    'cumulative': dict(momentum=None),
    'channels_last': dict(memory_format=torch.channels_last),
}


def normalise(norm, x, grad):
    """Two training steps and an eval pass: outputs, and the gradients of the input and the parameters."""
    out, leaf = [], x.clone(memory_format=torch.preserve_format).requires_grad_()
    for _ in range(2):
        y = norm(leaf)
        (y * grad).sum().backward()
        out.append(y.detach())
    parameters = [p.grad.clone() for p in norm.parameters()]
    norm.eval()
    return [*out, norm(x).detach(), leaf.grad], parameters, [b.clone() for b in norm.buffers()]


def share(kind, rank=None):
    options = dict(CASES[kind])
    x, grad = 3 * image(5, 6, 7, 7) + 10, image(5, 6, 7, 7, seed=1)
    x = x.contiguous(memory_format=options.pop('memory_format', torch.contiguous_format))
    norm = (nn.BatchNorm2d if rank is None else CPUSyncBatchNorm)(6, **options)
    for seed, parameter in enumerate(norm.parameters()):
        parameter.data += 0.3 * image(6, seed=seed)
    if rank is None:  # the reference, in float64
        return normalise(norm.double(), x.double(), grad.double())
    part = (slice(0, 4), slice(4, 5))[rank]  # four images and one
    return normalise(norm, x[part], grad[part])


def network_in_float64(rank=None):
    """Gradients and buffers of a UperNet after a step of four images, or of a process's two of them."""
    cfg = Config.fromfile(CONFIGS / 'upernet_replknet31b_ade20k.py')
    shrink_model(cfg.model)
    quiet(cfg.model)
    torch.manual_seed(0)
    model = MODELS.build(dict(cfg.model, _scope_='mmseg')).double().train()
    model = revert_sync_batchnorm(model) if rank is None else CPUDistributedDataParallel(model)
    part = slice(0, 4) if rank is None else slice(2 * rank, 2 * rank + 2)
    labels = torch.from_numpy(np.random.RandomState(0).randint(0, 150, (4, 64, 64)))
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label[None]), metainfo=dict(img_shape=(64, 64)))
               for label in labels]
    losses = model(image(4, 3, 64, 64).double()[part], samples[part], mode='loss')
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    return [torch.cat([p.grad.flatten() for p in model.parameters()]),
            torch.cat([b.flatten().double() for b in model.buffers()])]


def _rank(rank, store, queue):
    dist.init_process_group('gloo', f'file://{store}', rank=rank, world_size=2)
    results = {}
    for kind in CASES:
        maps, parameters, buffers = share(kind, rank)
        for gradient in parameters:  # DistributedDataParallel's work
            dist.all_reduce(gradient)
        results[kind] = [[t.numpy() for t in group] for group in (maps, parameters, buffers)]
    half = CPUSyncBatchNorm(6)(image(2, 6, 4, 4, seed=rank).bfloat16())
    results['half'] = str(half.dtype)
    results['network'] = [t.numpy() for t in network_in_float64(rank)]
    queue.put((rank, results))
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    """What two processes made of their shares."""
    context = multiprocessing.get_context('spawn')
    queue, folder = context.Queue(), tmp_path_factory.mktemp('ranks')
    processes = [context.Process(target=_rank, args=(rank, str(folder / 'store'), queue), daemon=True)
                 for rank in (0, 1)]
    for process in processes:
        process.start()
    ranks = dict(queue.get(timeout=200) for _ in processes)
    for process in processes:
        process.join(30)
    return ranks


def test_sync_batch_norm_equals_batch_norm_of_the_whole_batch(ranks):
    for kind in CASES:
        maps, parameters, buffers = share(kind)
        found = [[np.concatenate(pair) for pair in zip(ranks[0][kind][0], ranks[1][kind][0])], *ranks[0][kind][1:]]
        for group, expected in zip(found, (maps, parameters, buffers)):
            assert len(group) == len(expected)
            for actual, tensor in zip(group, expected):
                torch.testing.assert_close(torch.as_tensor(actual).to(tensor.dtype), tensor, rtol=1e-5, atol=1e-5,
                                           msg=lambda text: f'{kind}: {text}')
        for first, second in zip(ranks[0][kind][2], ranks[1][kind][2]):
            assert (first == second).all()
    assert ranks[0]['half'] == ranks[1]['half'] == 'torch.bfloat16'


def test_gradients_and_statistics_of_two_processes_equal_those_of_one(ranks):
    """In float64, where rounding hides nothing."""
    alone = network_in_float64()
    for rank in (0, 1):
        for actual, expected in zip(ranks[rank]['network'], alone):
            assert relative_error(torch.as_tensor(actual), expected) < 1e-10


def test_sync_batch_norm_alone_is_batch_norm():
    x, norm, plain = image(2, 4, 5, 5), CPUSyncBatchNorm(4), nn.BatchNorm2d(4)
    assert torch.equal(norm(x), plain(x)) and torch.equal(norm.running_var, plain.running_var)
    with pytest.raises(ValueError, match=r'expected \(N, C, ...\), got 1 dimensions'):
        norm(x[0, 0, 0])


# Whole runs of the tools

@pytest.fixture(scope='module')
def job(tmp_path_factory):
    """A folder with ``config.py``: a tiny UperNet with SyncBN, nothing random in it, two images a process, three to
    validate; each step of plain momentum SGD is kept, so that the first checkpoint holds its gradients."""
    folder = tmp_path_factory.mktemp('job')
    write_demo(DemoPlan('ade20k', seed=0, train=8, val=3, size=(64, 64)), folder / 'data')
    cfg = shrunk('upernet_replknet31b_ade20k', 'ade20k', folder / 'data', folder / 'work')
    make_certain(cfg)
    cfg.tta_pipeline[1].transforms[0] = [dict(type='Resize', scale=(side, side)) for side in (48, 64)]
    assert cfg.model.decode_head.norm_cfg.type == 'SyncBN'
    start_from_file(cfg, folder / 'initial.pth')
    cfg.dump(folder / 'config.py')
    return folder


def start_from_file(cfg, path):
    """Give the model's initial weights: runners draw other things, and not all the same, before they initialise it.

    Norms have affine terms and statistics: without, a channel that is zero all over an image is at ReLU's kink, where
    rounding decides on its gradient.
    """
    torch.save(dict(state_dict=fill(MODELS.build(dict(cfg.model, _scope_='mmseg'))).state_dict()), path)
    cfg.load_from = str(path)


def quiet(model):
    """Nothing random in a forward pass."""
    model.backbone.drop_path_rate = 0.0
    for head in (model.decode_head, model.auxiliary_head):
        head.dropout_ratio = 0.0


def make_certain(cfg):
    quiet(cfg.model)
    cfg.train_dataloader.dataset.pipeline = [
        dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', reduce_zero_label=True),
        dict(type='Resize', scale=(64, 64)), dict(type='PackSegInputs')]
    cfg.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9))
    cfg.default_hooks.checkpoint.interval = 1


def single(job, name, **options):
    """One process in place of two, by four images."""
    cfg = Config.fromfile(job / 'config.py')
    cfg.merge_from_dict({'work_dir': str(job / name), 'experiment_name': name, 'train_dataloader.batch_size': 4,
                         **options})
    return cfg


@pytest.fixture(scope='module')
def two(job):
    """Trained by two processes for two iterations; ``iter_1.pth``, ``iter_2.pth`` and the metrics are there."""
    (code, ), (out, ) = end(bash('dist_train.sh', job / 'config.py', 2, '--work-dir', job / 'two'))
    assert code == 0, out[-4000:]
    assert 'GPU number: 2' in out
    return job / 'two'


def read(folder, iteration):
    return torch.load(folder / f'iter_{iteration}.pth', map_location='cpu', weights_only=False)


def gradients(checkpoint):
    return torch.cat([state['momentum_buffer'].flatten() for state in checkpoint['optimizer']['state'].values()])


def validated(folder):
    """What a job of the tools wrote of its last validation."""
    log = max(folder.glob('*/vis_data/scalars.json'))
    return json.loads(log.read_text().splitlines()[-1])


def assert_same_state(actual, expected, tolerance=3e-6):
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=tolerance, atol=tolerance, msg=lambda m: f'{name}: {m}')


def test_two_processes_equal_one_on_the_same_images(job, two):
    cfg = single(job, 'one')
    one = build_runner(cfg)
    one.train()
    first, expected = read(two, 1), read(job / 'one', 1)
    # Of one process, float32's gradients are 2e-5 from float64's.
    assert relative_error(gradients(first), gradients(expected)) < 3e-5
    assert any('decode_head' in name and name.endswith('running_var') for name in expected['state_dict'])
    assert_same_state(first['state_dict'], expected['state_dict'])
    for name in ('aAcc', 'mIoU', 'mAcc'):  # in per cent, rounded to two digits, over three images in two processes
        alone = one.message_hub.get_scalar(f'val/{name}').current()
        assert validated(two)[name] == pytest.approx(alone, abs=0.011)


def test_two_nodes_test_as_one_did(job, two):
    port, nodes = free_port(), []
    for rank in '01':
        nodes.append(bash('dist_test.sh', job / 'config.py', two / 'iter_2.pth', 1, '--work-dir', job / 'nodes',
                          '--report', job / 'report', NNODES='2', NODE_RANK=rank, PORT=port))
    codes, outputs = end(*nodes)
    assert codes == [0, 0], outputs[0][-2000:] + outputs[1][-2000:]
    found, = (job / 'nodes').glob('*/*.json')
    tested = json.loads(found.read_text())
    assert tested['mIoU'] == pytest.approx(validated(two)['mIoU'], abs=0.011)
    report = json.loads((job / 'report' / 'report.json').read_text())
    assert report['images'] == 3  # of which the sampler gives one to both
    for name in ('aAcc', 'mIoU'):
        assert round(100 * report['results']['pixels']['metrics'][name], 2) == pytest.approx(tested[name])


def test_test_time_augmentation_by_a_launcher_is_that_of_one_process(job, two):
    launched = bash('dist_test.sh', job / 'config.py', two / 'iter_2.pth', 1, '--work-dir', job / 'tta-launched',
                    '--tta')
    code, out = run_script(REPO / 'tools' / 'test.py', job / 'config.py', two / 'iter_2.pth', '--work-dir',
                           job / 'tta', '--tta', cwd=REPO)
    codes, outputs = end(launched)
    assert [code, *codes] == [0, 0], out[-2000:] + outputs[0][-2000:]
    found = [json.loads(path.read_text()) for name in ('tta-launched', 'tta') for path in (job / name).glob('*/*.json')]
    assert len(found) == 2 and found[0]['mIoU'] == found[1]['mIoU'] and found[0]['aAcc'] == found[1]['aAcc']


def test_one_process_goes_on_where_two_stopped(job, two):
    resume = dict(resume=True, load_from=str(two / 'iter_1.pth'), default_hooks=dict(
        batch_size=dict(type='mmlk.BatchSizeHook')))
    build_runner(single(job, 'resumed', **resume)).train()
    assert not (job / 'resumed' / 'iter_1.pth').exists()
    assert_same_state(read(job / 'resumed', 2)['state_dict'], read(two, 2)['state_dict'])
    halved = build_runner(single(job, 'halved', **resume, **{'train_dataloader.batch_size': 2}))
    with pytest.raises(CheckpointError, match=r'trained with 4 images per iteration, .* has 2 \(1 processes\)'):
        halved.train()


def test_only_a_resumed_run_is_asked_for_its_batch_size():
    def load(resume, meta, batch_size=2, world_size=3):
        loader = SimpleNamespace(batch_sampler=SimpleNamespace(batch_size=batch_size))
        BatchSizeHook().after_load_checkpoint(
            SimpleNamespace(cfg=dict(resume=resume), world_size=world_size, train_dataloader=loader), dict(meta=meta))

    load(False, dict(batch_size=4))
    load(True, dict())
    load(True, dict(batch_size=6))
    with pytest.raises(CheckpointError, match='trained with 4 images per iteration, and this run has 6'):
        load(True, dict(batch_size=4))


FAILING = '''
    import os
    from mmengine.dist import get_rank
    from mmengine.hooks import Hook
    from mmengine.registry import HOOKS

    @HOOKS.register_module()
    class Fails(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            open(f'{runner.work_dir}/pid{get_rank()}', 'w').write(str(os.getpid()))
            if get_rank() == 1:
                raise OSError('no memory left in the second process')
'''


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_process_that_fails_ends_the_job_with_its_error(job):
    (job / 'fails.py').write_text(textwrap.dedent(FAILING))
    cfg = Config.fromfile(job / 'config.py')
    cfg.merge_from_dict(dict(custom_imports=dict(imports=['mmlk.registry', 'fails']), train_cfg=dict(max_iters=1000),
                             custom_hooks=[dict(type='Fails')]))
    cfg.dump(job / 'failing.py')
    (code, ), (out, ) = end(bash('dist_train.sh', job / 'failing.py', 2, '--work-dir', job / 'failed',
                                 PYTHONPATH=str(job)))
    assert code != 0
    cause = out[out.index('Root Cause'):]
    assert 'rank      : 1' in cause and 'OSError: no memory left in the second process' in cause
    assert not any(alive(int((job / 'failed' / f'pid{rank}').read_text())) for rank in (0, 1))


KILLED = '''
    import os, signal, sys
    import torch
    from mmengine.config import Config
    from mmengine.dist import all_reduce, get_rank
    from mmlk.engine.distributed import use_gloo

    use_gloo(Config(dict(launcher='pytorch')))
    total = torch.tensor(get_rank() + 1.0)
    all_reduce(total)
    print(f'rank {get_rank()} of node {sys.argv[1]}: sum {total.item()}', flush=True)
    if get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    all_reduce(total)
'''


def test_a_process_killed_on_one_of_two_nodes_ends_both(tmp_path):
    (tmp_path / 'killed.py').write_text(textwrap.dedent(KILLED))
    port = free_port()
    nodes = [start(sys.executable, '-m', 'torch.distributed.run', '--nnodes', '2', '--nproc-per-node', '1',
                   '--rdzv-backend', 'c10d', '--rdzv-endpoint', f'localhost:{port}', '--rdzv-id', 'job',
                   '--local-addr', 'localhost', tmp_path / 'killed.py', node) for node in 'ab']
    codes, outputs = end(*nodes)
    assert all(codes), outputs
    told = '\n'.join(outputs)
    assert 'rank 0' in told and 'rank 1' in told and told.count('sum 3.0') == 2
    assert f'Signal {signal.SIGKILL.value} (SIGKILL)' in told


def test_fsdp_and_accumulated_gradients_resumed_equal_one_process(job):
    cfg = Config.fromfile(CONFIGS / 'demo' / 'upernet_replknet-tiny_ade20k_fsdp.py')
    plain = Config.fromfile(job / 'config.py')
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader', 'train_cfg', 'randomness'):
        cfg[key] = plain[key]
    assert cfg.optim_wrapper.accumulative_counts == 2
    shrink_model(cfg.model)
    make_certain(cfg)
    # Micro-batches have statistics of their own, whoever accumulates them: norms keep theirs here.
    cfg.model.backbone.norm_eval = True
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.update(norm_cfg=dict(type='GN', num_groups=4), num_classes=150)  # of the other config's dataset
    cfg.param_scheduler = None
    cfg.work_dir = str(job / 'shares')
    cfg.optim_wrapper.update(constructor='mmlk.LayerDecayOptimWrapperConstructor', accumulative_counts=2,
                             paramwise_cfg=dict(decay_rate=0.9))
    cfg.optim_wrapper.optimizer.weight_decay = 0.1
    start_from_file(cfg, job / 'initial-fsdp.pth')
    whole = copy.deepcopy(cfg)
    cfg.train_dataloader.batch_size = 1
    cfg.default_hooks.checkpoint.interval = 2
    for iterations, resumed in ((2, []), (4, ['--resume', job / 'shares' / 'iter_2.pth'])):
        cfg.train_cfg.update(max_iters=iterations, val_interval=iterations)
        cfg.dump(job / 'fsdp.py')
        (code, ), (out, ) = end(bash('dist_train.sh', job / 'fsdp.py', 2, *resumed))
        assert code == 0, out[-4000:]

    for key in ('runner_type', 'strategy'):
        whole.pop(key)
    whole.optim_wrapper.pop('accumulative_counts')
    whole.merge_from_dict({'work_dir': str(job / 'whole'), 'experiment_name': 'whole',
                           'train_dataloader.batch_size': 4})
    runner = build_runner(whole)
    runner.train()
    shares, expected = read(job / 'shares', 4), read(job / 'whole', 2)
    assert_same_state(shares['state_dict'], expected['state_dict'], 5e-7)
    for group, other in zip(shares['optimizer']['param_groups'], expected['optimizer']['param_groups']):
        assert (len(group['params']), group['lr'], group['weight_decay'], group['depth']) == (
            len(other['params']), other['lr'], other['weight_decay'], other['depth'])
    alone = runner.message_hub.get_scalar('val/mIoU').current()
    assert validated(job / 'shares')['mIoU'] == pytest.approx(alone, abs=0.011)


# What a config is made into

@pytest.fixture
def _grouped():
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def start_shares(tmp_path):
    """From a file that is whole but for a layer of other classes, and not from others."""
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    os.environ['LOCAL_RANK'] = '0'

    def strategy(channels=8, classes=5):
        made = FSDPStrategy(work_dir=str(tmp_path), state_dict_cfg='local', model_wrapper=dict(
            type='MMFullyShardedDataParallel', use_orig_params=True, device_id='cpu'))
        head = nn.Linear(channels, classes)
        head.num_classes = classes
        model = made.build_model(nn.Sequential(nn.Linear(3, channels), nn.BatchNorm1d(channels), head))
        made.model = made._wrap_model(fill(model))
        return made

    def tensors(made):
        with FullyShardedDataParallel.state_dict_type(made.model, StateDictType.FULL_STATE_DICT):
            return {name: value.clone() for name, value in made.model.state_dict().items()}

    whole, made = {name: torch.rand(value.shape) if value.ndim else value
                   for name, value in tensors(strategy(classes=3)).items()}, strategy()
    before, seen = tensors(made), []
    torch.save(dict(state_dict=whole), tmp_path / 'whole.pth')
    made.load_checkpoint(str(tmp_path / 'whole.pth'), map_location='cpu', strict=False, callback=seen.append)
    for name, value in tensors(made).items():
        assert torch.equal(value, before[name] if name.startswith('2.') else whole[name]), name
    assert len(seen) == 1
    for lacking in '0.weight', '1.running_mean', '2.bias':
        torch.save({name: value for name, value in whole.items() if name != lacking}, tmp_path / 'less.pth')
        with pytest.raises(WeightsError, match=f'were not filled(.|\n)*{lacking}'):
            made.load_checkpoint(str(tmp_path / 'less.pth'))
    with pytest.raises(WeightsError, match='were not filled'):
        strategy(channels=4).load_checkpoint(str(tmp_path / 'whole.pth'))


def test_shares_start_from_the_whole_file_or_not_at_all(tmp_path):
    assert forked(start_shares, tmp_path) == 0  # else a process forked later might clear the group away, and hang


def test_a_config_is_fitted_to_the_cpu(_grouped):
    def fitted(**settings):
        cfg = Config(dict(launcher='pytorch', **settings))
        use_gloo(cfg)
        return cfg

    ours = dict(type='mmlk.CPUDistributedDataParallel', device_ids=None, broadcast_buffers=False)
    assert fitted(find_unused_parameters=True).model_wrapper_cfg == dict(ours, find_unused_parameters=True)
    given = dict(type='MMDistributedDataParallel', broadcast_buffers=True, static_graph=True)
    assert fitted(model_wrapper_cfg=given).model_wrapper_cfg == dict(
        ours, broadcast_buffers=True, static_graph=True, find_unused_parameters=False)
    other = dict(type='MMSeparateDistributedDataParallel')
    assert fitted(model_wrapper_cfg=other).model_wrapper_cfg == other
    strategy = fitted(strategy=dict(type='DDPStrategy')).strategy
    assert strategy.model_wrapper == dict(ours, find_unused_parameters=False)
    assert fitted(strategy=dict(type='FSDPStrategy')).strategy.model_wrapper == dict(device_id='cpu')


def test_a_config_is_left_alone_where_there_is_a_gpu_or_one_process(monkeypatch):
    for device, launcher in (('cpu', 'none'), ('cuda', 'pytorch'), ('cuda', 'slurm')):
        monkeypatch.setattr('mmlk.engine.distributed.get_device', lambda: device)
        cfg = Config(dict(launcher=launcher))
        use_gloo(cfg)
        assert cfg.to_dict() == dict(launcher=launcher)
    assert not dist.is_initialized()


SLURM = dict(SLURM_PROCID='5', SLURM_NTASKS='8', SLURM_LOCALID='1', SLURM_JOB_ID='1234', SLURM_STEP_ID='3',
             SLURM_NODELIST='n[1-4]', SLURM_STEP_NODELIST='n[03-04],m[1,2]')
TORCH = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')


@pytest.fixture
def slurm(monkeypatch):
    """A process of Slurm's; what it finds set is taken back."""
    for name in TORCH:
        monkeypatch.setenv(name, '')
        monkeypatch.delenv(name)
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_a_process_of_slurm_is_told_where_the_others_are(slurm):
    read_slurm()
    assert [os.environ[name] for name in TORCH] == ['5', '8', '1', 'n03', str(15000 + 4747)]  # 16 * 1234 + 3 - 15000
    for job, step in (('1234', '4'), ('1235', '3'), ('4294901759', '0')):
        slurm.setenv('SLURM_JOB_ID', job)
        slurm.setenv('SLURM_STEP_ID', step)
        slurm.delenv('MASTER_PORT')
        read_slurm()
        assert os.environ['MASTER_PORT'] != '19747' and 15000 <= int(os.environ['MASTER_PORT']) < 30000
    slurm.setenv('MASTER_ADDR', 'given')
    slurm.setenv('MASTER_PORT', '7')
    read_slurm()
    assert (os.environ['MASTER_ADDR'], os.environ['MASTER_PORT']) == ('given', '7')
    read_slurm(port=8)
    assert os.environ['MASTER_PORT'] == '8'


@pytest.mark.parametrize('nodes, first', [
    ('host', 'host'), ('a-1,b', 'a-1'), ('n[003-010,12],m', 'n003'), ('r[1-2]n[08-09,20]x', 'r1n08x'),
    ('n[7,9]', 'n7')])
def test_the_first_of_slurms_nodes(nodes, first):
    assert first_node(nodes) == first


def test_a_process_of_slurm_joins_by_gloo_on_a_cpu(slurm):
    for name, value in dict(SLURM_PROCID='0', SLURM_NTASKS='1', SLURM_LOCALID='0', MASTER_ADDR='127.0.0.1').items():
        slurm.setenv(name, value)
    slurm.setattr('mmlk.engine.distributed._joined', False)
    cfg = Config(dict(launcher='slurm', env_cfg=dict(dist_cfg=dict(port=int(free_port())))))
    read_slurm(cfg.env_cfg.dist_cfg.port)
    try:
        use_gloo(cfg)
        assert (dist.get_backend(), dist.get_world_size()) == ('gloo', 1)
    finally:
        dist.destroy_process_group()
    assert cfg.model_wrapper_cfg.type == 'mmlk.CPUDistributedDataParallel'


@pytest.mark.parametrize('launcher, message', [
    ('slurm', 'is for processes that srun starts, and SLURM_STEP_ID is not set: start them with srun'),
    ('mpi', 'takes a GPU per process and this machine has none: start the processes with torchrun')])
def test_a_launcher_that_cannot_work_is_refused(slurm, capsys, launcher, message):
    slurm.setattr('mmlk.engine.distributed.get_device', lambda: 'cpu')
    slurm.delenv('SLURM_STEP_ID')  # as in the script of a job, which is not one of its processes
    with pytest.raises(SystemExit):
        build_runner(Config(dict(launcher=launcher)))
    assert message in capsys.readouterr().err
