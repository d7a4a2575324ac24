"""What a wheel and a source distribution hold, that the installed files are enough for MIM, and what pip installs."""
import ast
import itertools
import fnmatch
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile

import pytest
import yaml
from packaging.specifiers import SpecifierSet

CHECKOUT_TOOLS = {'doctor.py', 'render_zoo.py'}  # they look at files of a checkout
LEFT_OUT = shutil.ignore_patterns('.git', '.venv*', 'data', 'work_dirs', 'build', 'dist', '*.egg-info', '__pycache__',
                                  '.*_cache', '.hypothesis')


def build(kind, source, out):
    """A distribution of the tree at ``source``, made as pip makes it."""
    code = f'from setuptools import build_meta; print(build_meta.build_{kind}({str(out)!r}))'
    done = subprocess.run([sys.executable, '-c', code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return out / done.stdout.splitlines()[-1]


def files(root, *patterns):
    """Paths of the files below ``root``, relative to it."""
    found = {path.relative_to(root).as_posix() for pattern in patterns for path in root.glob(pattern)}
    return {name for name in found if (root / name).is_file() and '__pycache__' not in name}


@pytest.fixture(scope='module')
def built(request, tmp_path_factory):
    """The tree, a wheel of it, an unpacked source distribution of it, and a wheel of that."""
    root, tmp = request.config.rootpath, tmp_path_factory.mktemp('packaging')
    tree = tmp / 'tree'
    shutil.copytree(root, tree, symlinks=True, ignore=lambda folder, names: LEFT_OUT(folder, names) & {
        name for name in names if name != 'data' or folder == str(root)})  # tests/data stays
    wheel = build('wheel', tree, tmp)
    with tarfile.open(build('sdist', tree, tmp)) as archive:
        archive.extractall(tmp / 'sdist', filter='data')
    [unpacked] = (tmp / 'sdist').iterdir()
    (tmp / 'again').mkdir()
    return tree, wheel, unpacked, build('wheel', unpacked, tmp / 'again')


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if '.dist-info/' not in name}


def test_a_wheel_holds_the_package_and_what_mim_needs(built):
    tree, wheel, _, _ = built
    package = {f'mmlk/{name}' for name in files(tree / 'mmlk', '*.py', '[!.]*/**/*.py')}
    configs = {f'mmlk/.mim/configs/{name}' for name in files(tree / 'configs', '**/*')}
    tools = {f'mmlk/.mim/tools/{name}' for name in files(tree / 'tools', '*.py') - CHECKOUT_TOOLS}
    assert contents(wheel) == package | configs | tools | {'mmlk/.mim/model-index.yml'}


def test_a_source_distribution_holds_the_checkout(built):
    tree, wheel, unpacked, again = built
    assert files(tree, '**/*') - {'.gitignore'} <= files(unpacked, '**/*')
    assert contents(again) == contents(wheel)


def test_everything_that_the_index_names_is_installed(built):
    _, wheel, _, _ = built
    with zipfile.ZipFile(wheel) as archive:
        def read(name):
            return yaml.safe_load(archive.read(f'mmlk/.mim/{name}'))

        names = [name[len('mmlk/.mim/'):] for name in archive.namelist() if name.startswith('mmlk/.mim/')]
        records = [name for pattern in read('model-index.yml')['Import'] for name in fnmatch.filter(names, pattern)]
        configs = [row['Config'] for name in records for row in read(name)['Models']]
    assert len(records) > 10
    assert configs and {f'mmlk/.mim/{config}' for config in configs} <= contents(wheel)


def test_an_editable_installation_has_the_same_files_beside_the_package(built, repo):
    mim = repo / 'mmlk' / '.mim'
    shipped = {name[len('mmlk/.mim/'):] for name in contents(built[1]) if name.startswith('mmlk/.mim/')}
    assert shipped == {name for name in shipped if (mim / name).read_bytes() == (repo / name).read_bytes()}


def test_the_installed_tools_train_an_installed_config(built, tmp_path):
    """As ``mim train mmlk upernet_replknet-tiny_ade20k.py`` calls them, far from the checkout."""
    _, wheel, _, _ = built
    site = tmp_path / 'site'
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    mim, run = site / 'mmlk' / '.mim', tmp_path / 'run'
    run.mkdir()

    def call(*arguments):
        done = subprocess.run([sys.executable, '-W', 'ignore', *map(str, arguments)], cwd=run, capture_output=True,
                              text=True, env={**os.environ, 'PYTHONPATH': str(site)})
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout + done.stderr

    assert call('-c', 'import mmlk; print(mmlk.__file__)').strip() == str(site / 'mmlk' / '__init__.py')
    call(mim / 'tools' / 'make_demo_data.py', '--layout', 'ade20k', '--out', 'data/demo/ade20k', '--train', 8,
         '--val', 1)
    call(mim / 'tools' / 'train.py', mim / 'configs' / 'demo' / 'upernet_replknet-tiny_ade20k.py', '--launcher', 'none',
         '--cfg-options', 'train_cfg.max_iters=1', 'train_cfg.val_interval=1', 'default_hooks.checkpoint.interval=1',
         'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False',
         'val_dataloader.num_workers=0', 'val_dataloader.persistent_workers=False')
    assert (run / 'work_dirs' / 'upernet_replknet-tiny_ade20k' / 'iter_1.pth').exists()


def instructions(dockerfile):
    """(instruction, arguments) of every line of a Dockerfile, continued lines joined."""
    text = re.sub(r'^#.*\n', '', dockerfile.read_text(), flags=re.MULTILINE).replace('\\\n', ' ')
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def test_the_dockerfile_runs_what_a_checkout_has(repo):
    lines = instructions(repo / 'Dockerfile')
    assert {name for name, _ in lines} <= {'ARG', 'FROM', 'RUN', 'WORKDIR', 'COPY', 'ENV', 'CMD'}
    assert [name for name, _ in lines][:2] == ['ARG', 'FROM'] and lines[-1][0] == 'CMD'
    assert dict(line[1].split('=') for line in lines if line[0] == 'ARG')['BASE']  # what FROM uses has a default
    for text in [line for name, line in lines if name == 'COPY']:
        assert all((repo / source).exists() for source in text.split()[:-1])
    commands = ' '.join(line for name, line in lines if name in ('RUN', 'CMD'))
    scripts = re.findall(r'tools/\w+\.sh', commands)
    assert scripts == ['tools/install.sh', 'tools/quickstart.sh']
    assert all((repo / script).exists() for script in scripts)
    for command in [line for name, line in lines if name == 'RUN']:
        subprocess.run(['bash', '-n', '-c', command], check=True)
    assert '--compiled-ops' in (repo / 'tools' / 'install.sh').read_text()
    # variables that the image's build hands on are arguments of it
    declared = {line.split('=')[0] for name, line in lines if name == 'ARG'}
    given = set(re.findall(r'--build-arg (\w+)=', (repo / 'Dockerfile').read_text()))
    assert given <= declared and {'BASE', 'INSTALL', 'FORCE_CUDA'} <= given


def test_an_image_gets_the_files_of_git_and_no_others(repo):
    """Docker's patterns: ``**/`` is any folder, also none; others start at the root, and take whole folders."""
    patterns = (repo / '.dockerignore').read_text().split()

    def ignored(name):
        parts = name.split('/')
        starts = ['/'.join(parts[:end]) for end in range(1, len(parts) + 1)]
        return any(fnmatch.fnmatchcase(part if pattern.startswith('**/') else start, pattern.replace('**/', ''))
                   for pattern in patterns for part, start in zip(parts, starts))

    for name in ('.venv/bin/python', '.venv-classic/x', '.git/config', 'data/ade/1.png', 'work_dirs/a/b.pth',
                 'mmlk/ops/__pycache__/choice.cpython-311.pyc', 'mmlk.egg-info/PKG-INFO', 'build/lib/mmlk/a.py'):
        assert ignored(name), name
    for name in ('mmlk/__init__.py', 'tools/install.sh', 'requirements.txt', 'tests/data/a.npz', '.ci/run',
                 '.ci/requirements-classic.txt', 'README.md', 'mmlk/.mim/tools', 'configs/demo/a.py'):
        assert not ignored(name), name


def test_the_lowest_python_that_is_accepted_runs_every_pinned_package(repo):
    [lowest] = set(re.findall(r'sys\.version_info < \((\d+), (\d+)\)', (repo / 'tools' / '_env.sh').read_text()
                              + (repo / 'tools' / 'install.sh').read_text()))
    for name in re.findall(r'^([\w-]+)==', (repo / 'requirements.txt').read_text(), re.MULTILINE):
        try:
            required = importlib.metadata.metadata(name).get('Requires-Python')
        except importlib.metadata.PackageNotFoundError:
            continue  # of the other stack
        assert '.'.join(lowest) in SpecifierSet(required or ''), f'{name} needs Python {required}'


def test_the_installed_command_runs_outside_the_checkout(built, tmp_path):
    """In a virtual environment of its own, which finds the other packages in this one."""
    environment, run = tmp_path / 'environment', tmp_path / 'run'
    venv.create(environment, with_pip=False)
    site, = environment.glob('lib/python*/site-packages')
    (site / 'others.pth').write_text(sysconfig.get_path('purelib') + '\n')
    run.mkdir()
    outside = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    subprocess.run([sys.executable, '-m', 'pip', '--python', environment, 'install', '--quiet', '--no-deps',
                    '--no-index', built[1]], check=True, env=outside)

    def call(*arguments):
        done = subprocess.run(list(map(str, arguments)), cwd=run, capture_output=True, text=True, env={
            **outside, 'MMLK_HOME': str(run)})
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    python, mmlk = environment / 'bin' / 'python', environment / 'bin' / 'mmlk'
    assert call(python, '-c', 'import mmlk; print(mmlk.__file__)').strip() == str(site / 'mmlk' / '__init__.py')
    assert call(mmlk, '--help') == call(python, '-m', 'mmlk', '--help')
    assert call(mmlk, '--help').startswith('usage: mmlk COMMAND')
    assert 'replknet-31b_in1k' in call(mmlk, 'weights', 'list', 'RepLKNet')
    assert call(mmlk, 'erf', '--help').startswith('usage: mmlk erf')
    call(mmlk, 'demo-data', '--layout', 'ade20k', '--out', run / 'demo', '--train', 1, '--val', 1)
    assert len(list((run / 'demo').rglob('*.png'))) == 2


#: Distributions whose packages have other names.
DISTRIBUTIONS = {'PIL': 'pillow', 'pytorch_grad_cam': 'grad-cam', 'skimage': 'scikit-image', 'yaml': 'pyyaml'}
#: What comes with one of the two distributions of OpenMMLab (mmlk/_require.py, mmlk/_mmpretrain.py), and with PyTorch
#: for GPUs.
NOT_NAMED = {'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'cv2', 'pycocotools', 'triton'}


def normalised(requirement):
    """The name in a requirement, as pip compares names."""
    return re.sub('[-_.]+', '-', re.match(r'[\w.-]+', requirement)[0]).lower()


def test_every_import_is_a_declared_and_pinned_dependency(repo):
    project = pytest.importorskip('tomllib').loads((repo / 'pyproject.toml').read_text(encoding='utf-8'))['project']
    extras = project['optional-dependencies']
    page = {normalised(text) for text in extras['demo']}  # ranges, because gradio pins much itself
    declared = {normalised(text) for text in (*project['dependencies'], *extras['cam'], *extras['export'],
                                              *extras['hub'], *extras['runtimes'], *extras['demo'])}
    imported = set()
    for path in (*(repo / 'mmlk').glob('[!.]*/**/*.py'), *(repo / 'mmlk').glob('*.py'), *(repo / 'tools').glob('*.py')):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition('.')[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.partition('.')[0])
    foreign = imported - set(sys.stdlib_module_names) - NOT_NAMED - {'mmlk'}
    needed = {normalised(DISTRIBUTIONS.get(name, name)) for name in foreign}
    assert {'torch', 'filelock', 'onnx-ir', 'pillow', 'rich'} <= needed
    assert not needed - declared
    # an extra that the default installation does not have pins what it has itself
    lines = (*(repo / 'requirements.txt').read_text().splitlines(), *itertools.chain(*extras.values()))
    pinned = {normalised(line) for line in lines if '==' in line}
    assert not declared - pinned - page - {'setuptools'}
