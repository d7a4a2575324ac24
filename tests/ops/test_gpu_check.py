"""The check that runs on a GPU, tried on the CPU where no OpenMMLab package can be imported."""
import json
import os
import subprocess
import sys

import pytest
import torch

from mmlk.ops.backends import triton as triton_backend
from mmlk.studies import gpu_check
from tests.utils import fill, image

BLOCK = '''
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('mmengine', 'mmcv', 'mmdet', 'mmseg'):
            raise ModuleNotFoundError(f'No module named {name!r}')
sys.meta_path.insert(0, Blocked())
'''


def run(repo, tmp_path, *options):
    """The finished process, and what it left: the figures and the text."""
    (tmp_path / 'site').mkdir()
    (tmp_path / 'site/sitecustomize.py').write_text(BLOCK)
    env = {**os.environ, 'TRITON_INTERPRET': '1', 'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable,
           'PYTHONPATH': str(tmp_path / 'site')}
    done = subprocess.run(['bash', repo / 'tools/gpu_check.sh', '--device', 'cpu', '--quick', '--out', tmp_path / 'out',
                           *options], capture_output=True, text=True, env=env)
    assert (tmp_path / 'out/check.json').exists(), done.stderr
    return done, json.loads((tmp_path / 'out/check.json').read_text()), (tmp_path / 'out/check.md').read_text()


@pytest.mark.skipif(triton_backend._triton_version() < (3, 4), reason='there is no triton 3.4 or later')
def test_every_part_runs_without_openmmlab(repo, tmp_path):
    done, figures, text = run(repo, tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert figures['finished'] and figures['failures'] == []
    assert {row['step'] for row in figures['passes']} == {'forward', 'grad_input', 'grad_weight', 'gradients'}
    assert {row['backend'] for row in figures['precision']} >= {'triton', 'native', 'chosen', 'stock'}
    assert {row['dtype'] for row in figures['precision']} == {'float16', 'bfloat16', 'float32'}
    assert [row['what'] for row in figures['models']] == ['inference, merged', 'training']
    assert ' passed' in figures['tests'][0]['result'] and len(figures['grid']) == 6
    for part in ('passes', 'precision', 'models'):
        assert text.count('| ' + ' | '.join(figures[part][0]) + ' |') == 1  # the head of its table


def test_a_failure_is_told(repo, tmp_path):
    """A tolerance that nothing can meet."""
    code = ('from mmlk.cli import main; from mmlk.studies import gpu_check as check;'
            'check.TOLERANCE = dict.fromkeys(check.TOLERANCE, 0.); main()')
    options = ['--device', 'cpu', '--quick', '--parts', 'precision', '--out', tmp_path]
    done = subprocess.run([sys.executable, '-c', code, 'gpu-check', *options], cwd=repo, capture_output=True, text=True)
    assert done.returncode == 1
    failures = json.loads((tmp_path / 'check.json').read_text())['failures']
    assert failures and all(failure.startswith('precision of ') for failure in failures)


def test_time_that_is_over_leaves_what_was_found(repo, tmp_path):
    done, figures, text = run(repo, tmp_path, '--seconds', '0', '--parts', 'precision', 'models', 'grid')
    assert done.returncode == 0 and figures['finished'] and 'torch' in text
    assert not {'precision', 'models', 'grid'} & set(figures)


@pytest.mark.parametrize('merged', [False, True])
def test_its_network_is_the_backbone(merged):
    pytest.importorskip('mmengine')
    from mmlk.backbones import RepLKNet
    arch = dict(large_kernel_sizes=(9, 9, 7, 7), layers=(1, 1, 2, 1), channels=(8, 16, 32, 64), small_kernel=5)
    backbone = fill(RepLKNet(arch, merged=merged)).eval()
    ours = gpu_check.RepLKNet(arch['large_kernel_sizes'], arch['layers'], 8, merged).eval()
    ours.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        for one, other in zip(ours(image(1, 3, 64, 64)), backbone(image(1, 3, 64, 64))):
            torch.testing.assert_close(one, other)
