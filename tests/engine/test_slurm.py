"""The tools in a real Slurm cluster of one node: two processes train, are preempted and requeued, resume, and test."""
import json
import os
import shutil
import subprocess
import textwrap
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from mmlk.datasets.layouts import DemoPlan, write_demo
from mmlk.engine.distributed import first_node
from tests.engine.test_distributed import free_port
from tests.test_training import shrunk

REPO = Path(__file__).resolve().parent.parent.parent
PLACES = os.pathsep.join([os.environ['PATH'], '/usr/sbin', '/sbin'])
LACKING = [name for name in ('munged', 'slurmctld', 'slurmd', 'srun', 'sbatch') if not shutil.which(name, path=PLACES)]
pytestmark = [
    pytest.mark.slow, pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(LACKING), reason=f'no {", ".join(LACKING)} here: apt-get install slurm-wlm munge')]

# Slurm and the machine say when things happen: this hook says at which iteration. The first attempt of a job stays at
# the third and outlives SIGTERM, the second at the fifth, where SIGTERM ends it at once, and so does the third.
HOOK = '''
    import os, signal, time
    from pathlib import Path
    from mmengine.hooks import Hook
    from mmengine.registry import HOOKS

    @HOOKS.register_module()
    class Stays(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            attempt = int(os.environ.get('SLURM_RESTART_COUNT', 0))
            folder, name = Path(runner.work_dir), f'{attempt}.{runner.rank}'
            with open(folder / f'iterations.{name}', 'a') as file:
                file.write(f'{runner.iter + 1} ')
            if 'SLURM_JOB_ID' in os.environ and runner.iter + 1 == {0: 3, 1: 5, 2: 7}.get(attempt):
                if attempt == 0:
                    signal.signal(signal.SIGTERM, lambda *_: (folder / f'told.{name}').touch())
                (folder / f'stays.{name}').touch()
                while True:
                    time.sleep(0.1)
'''


@pytest.fixture(scope='module')
def environment():
    """Of programs that use the cluster."""
    environment = {key: value for key, value in os.environ.items()
                   if not key.startswith(('SLURM_', 'SRUN_', 'SBATCH_', 'MASTER_'))}
    environment.update(CUDA_VISIBLE_DEVICES='', GLOO_SOCKET_IFNAME='lo', OMP_NUM_THREADS='1', GPUS='2',
                       CPUS_PER_TASK='1')
    cluster = subprocess.Popen(
        ['bash', REPO / 'tests' / 'engine' / 'slurm_cluster.sh', 'sh', '-c', 'echo "$SLURM_CONF"; exec cat'],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    environment['SLURM_CONF'] = cluster.stdout.readline().strip()
    try:
        assert environment['SLURM_CONF'], 'the cluster did not start'
        yield environment
    finally:
        cluster.communicate()  # the command ends with its input, and the cluster with it
    assert not Path(environment['SLURM_CONF']).parent.exists()


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """Of eight iterations of a tiny UperNet with SyncBN and everything random that configs have."""
    folder = tmp_path_factory.mktemp('job')
    write_demo(DemoPlan('ade20k', seed=0, train=8, val=3, size=(64, 64)), folder / 'data')
    (folder / 'stays.py').write_text(textwrap.dedent(HOOK))
    cfg = shrunk('upernet_replknet31b_ade20k', 'ade20k', folder / 'data', folder / 'work')
    cfg.train_cfg.update(max_iters=8, val_interval=8)
    cfg.default_hooks.checkpoint.interval = 2
    cfg.custom_imports.imports.append('stays')
    cfg.custom_hooks = [dict(type='Stays')]
    cfg.dump(folder / 'config.py')
    return folder / 'config.py'


def run(environment, config, *command):
    paths = filter(None, [str(config.parent), os.environ.get('PYTHONPATH')])
    done = subprocess.run(list(map(str, command)), cwd=REPO, text=True, capture_output=True, stdin=subprocess.DEVNULL,
                          env={**environment, 'PYTHONPATH': os.pathsep.join(paths)}, timeout=200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout.strip()


def wait(what, output=None):
    for _ in range(1800):
        if what():
            return
        time.sleep(0.1)
    pytest.fail(output.read_text()[-3000:] if output and output.exists() else 'it did not happen')


def iterations(folder, attempt):
    """That each process went through in an attempt."""
    first, second = (path.read_text() for path in folder.glob(f'iterations.{attempt}.*'))
    assert first == second
    return [int(number) for number in first.split()]


def test_a_job_preempted_and_requeued_ends_as_one_left_alone(environment, config):
    work, output = config.parent / 'requeued', config.parent / 'output.txt'
    slurm = partial(run, environment, config)
    number = slurm('sbatch', '--parsable', '--requeue', '--partition=low', '--open-mode=append', f'--output={output}',
                   '--gres=gpu:2', '--ntasks=2', '--cpus-per-task=1', '--wrap',
                   f'exec bash tools/slurm_train.sh low training {config} --work-dir {work} --resume')

    def staying(attempt):
        return lambda: all((work / f'stays.{attempt}.{rank}').exists() for rank in (0, 1))

    wait(staying(0), output)
    slurm('srun', '--partition=high', '--exclusive', 'true')  # which takes the whole node
    assert all((work / f'told.0.{rank}').exists() for rank in (0, 1))  # by SIGTERM, before SIGKILL
    wait(staying(1), output)
    slurm('srun', '--partition=high', '--exclusive', 'true')
    wait(staying(2), output)
    slurm('scontrol', 'requeue', number)
    wait(lambda: (work / 'iter_8.pth').exists(), output)
    wait(lambda: 'JobState=COMPLETED' in slurm('scontrol', 'show', 'job', number), output)
    assert [iterations(work, attempt) for attempt in range(4)] == [[1, 2, 3], [3, 4, 5], [5, 6, 7], [7, 8]]

    alone = config.parent / 'alone'  # which torchrun starts, without Slurm
    run(dict(environment, PORT=free_port()), config, 'bash', 'tools/dist_train.sh', config, 2, '--work-dir', alone)
    assert iterations(alone, 0) == list(range(1, 9))
    states = [torch.load(folder / 'iter_8.pth', weights_only=False) for folder in (work, alone)]
    for key in ('state_dict', 'optimizer'):
        torch.testing.assert_close(states[0][key], states[1][key], rtol=0, atol=0)

    # The script allocates two processes by itself, here without the GPUs of the default.
    out = run(dict(environment, SRUN_ARGS='--gres=none'), config, 'bash', 'tools/slurm_test.sh', 'low', 'testing',
              config, work / 'iter_8.pth', '--work-dir', config.parent / 'tested')
    assert 'GPU number: 2' in out
    found, = (config.parent / 'tested').glob('*/*.json')
    scalars = max(alone.glob('*/vis_data/scalars.json')).read_text().splitlines()
    assert json.loads(found.read_text())['mIoU'] == json.loads(scalars[-1])['mIoU']


FAILS = '''
    import os, sys, time
    from pathlib import Path
    import torch
    from mmengine.config import Config
    from mmengine.dist import all_reduce, get_rank
    from mmlk.engine.distributed import read_slurm, use_gloo

    read_slurm()
    use_gloo(Config(dict(launcher='slurm')))
    total = torch.tensor(get_rank() + 1.0)
    all_reduce(total)
    print(f'rank {get_rank()}: sum {total.item()}', flush=True)
    (Path(sys.argv[1]) / f'{os.environ["MASTER_PORT"]}.{get_rank()}').touch()
    while len(os.listdir(sys.argv[1])) < 4:  # until both jobs are here
        time.sleep(0.1)
    if get_rank() == 1:
        raise OSError('no memory left in the second process')
    all_reduce(total)
'''


def test_jobs_that_share_a_node_keep_apart_and_end_with_the_first_process_that_fails(environment, tmp_path):
    (tmp_path / 'fails.py').write_text(textwrap.dedent(FAILS))
    (tmp_path / 'ports').mkdir()
    paths = filter(None, [str(REPO), os.environ.get('PYTHONPATH')])
    environment = {**environment, 'PYTHONPATH': os.pathsep.join(paths)}
    jobs = [subprocess.Popen(['srun', '--ntasks=2', '--overcommit', '--kill-on-bad-exit=1', 'python',
                              tmp_path / 'fails.py', tmp_path / 'ports'], env=environment, stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    for job in jobs:
        out = job.communicate(timeout=200)[0]
        assert job.returncode != 0
        assert 'rank 0: sum 3.0' in out and 'rank 1: sum 3.0' in out
        assert 'OSError: no memory left in the second process' in out
    assert len({path.stem for path in (tmp_path / 'ports').iterdir()}) == 2


@pytest.mark.parametrize('nodes', ['localhost', 'n[003-010,12],m', 'r[1-2]n[08-09,20]', 'x-1,y[1,2]'])
def test_the_first_node_is_the_one_that_slurm_names(environment, nodes):
    named = subprocess.run(['scontrol', 'show', 'hostnames', nodes], env=environment, stdout=subprocess.PIPE,
                           text=True, check=True).stdout.split()
    assert first_node(nodes) == named[0]
