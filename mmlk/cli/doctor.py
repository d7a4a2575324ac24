"""Look at this environment, say what mmlk can do in it, and for each problem the command that mends it.

    mmlk doctor

Exit code 1 when something is broken, else 0. Needs the standard library alone: what is missing is a finding.
"""
import argparse
import contextlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import io
import os
import platform
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

ROOT = Path(__file__).resolve().parent.parent.parent  # of the checkout, where mmlk is not installed from a wheel

# import name -> distributions that provide it, the pinned one first
DISTRIBUTIONS = {
    'torch': ('torch', ),
    'torchvision': ('torchvision', ),
    'numpy': ('numpy', ),
    'cv2': ('opencv-python', 'opencv-python-headless'),
    'timm': ('timm', ),
    'mmengine': ('onedl-mmengine', 'mmengine'),
    'mmcv': ('onedl-mmcv', 'mmcv', 'mmcv-full', 'mmcv-lite'),
    'mmdet': ('onedl-mmdetection', 'mmdet'),
    'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
    'mmlk': ('mmlk', ),
    'mmpretrain': ('onedl-mmpretrain', 'mmpretrain'),  # after mmlk, which mends its import beside new transformers
}
INSTALL = 'bash tools/install.sh'
# optional packages, and how to install them
OPTIONAL = {'mmpretrain': f'{INSTALL} --with pretrain'}
EDITABLE = 'pip install --no-deps --no-build-isolation -e .'
WRITE = 'python -m mmlk._mmcv_file'
COMPILE = ('pip install "setuptools<81" wheel ninja psutil && '
           'MMCV_WITH_OPS=1 pip install --no-build-isolation')

Facts = Dict[str, Any]


class Problem(NamedTuple):
    """``level`` is ``'problem'`` (something is broken) or ``'note'`` (not everybody needs it)."""
    level: str
    text: str
    mend: str


def release(version: Optional[str]) -> Tuple[int, ...]:
    """``'2.12.1+cu130'`` -> (2, 12, 1); no version compares below all others."""
    head = re.match(r'\d+(\.\d+)*', version or '')
    return tuple(int(part) for part in head[0].split('.')) if head else ()


def installed(facts: Facts, module: str) -> List[str]:
    """The distributions of ``module`` that are installed."""
    return [name for name in DISTRIBUTIONS[module] if name in facts['versions']]


def because(facts: Facts, module: str) -> str:
    """The error that importing ``module`` gave, in brackets; nothing where it gave none."""
    error = facts['imports'].get(module)
    return f' ({error})' if error else ''


def pinned(distribution: str) -> str:
    """``torch`` -> ``torch==2.12.1``, as requirements.txt has it; without a version outside a checkout."""
    try:
        line = re.search(rf'^{distribution}==\S+', (ROOT / 'requirements.txt').read_text(), re.MULTILINE)
    except FileNotFoundError:
        line = None
    return line[0] if line else distribution


def check_python(facts: Facts) -> Iterator[Problem]:
    if release(facts['python']) < (3, 10):
        yield Problem('problem',
                      f'Python {facts["python"]} is too old: mmlk needs 3.10, the pinned packages 3.11',
                      f'PYTHON=python3.11 {INSTALL}')


def check_both_distributions(facts: Facts) -> Iterator[Problem]:
    for module in ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain'):
        there = installed(facts, module)
        if len(there) > 1:
            yield Problem('problem',
                          f'{" and ".join(there)} are installed together, and both write the files of '
                          f'{module!r}: what is imported is a mixture',
                          f'pip uninstall -y {" ".join(there)} && {OPTIONAL.get(module, INSTALL)}')


def check_torchvision(facts: Facts) -> Iterator[Problem]:
    error = facts['imports'].get('torchvision')
    if error and 'torchvision' in facts['present'] and not facts['imports'].get('torch'):
        torch = facts['versions'].get('torch', '')
        why = (f"torch {torch} is a build without CUDA, and PyPI's torchvision is made for one with it"
               if torch.endswith('+cpu') else f'it was made for another torch than {torch}')
        yield Problem('problem',
                      f'torchvision cannot be imported ({error}): {why}',
                      f'pip install --force-reinstall {pinned("torch")} {pinned("torchvision")} && {INSTALL}')


def check_opencv(facts: Facts) -> Iterator[Problem]:
    error = facts['imports'].get('cv2')
    if error and 'cannot open shared object file' in error:
        version = facts['versions'][installed(facts, 'cv2')[0]]
        yield Problem('problem',
                      f'OpenCV cannot be imported ({error}): opencv-python needs system libraries that are '
                      'not here, and its headless build does not',
                      f'pip install --force-reinstall --no-deps opencv-python-headless=={version}')


def check_pkg_resources(facts: Facts) -> Iterator[Problem]:
    setuptools, mmengine = facts['versions'].get('setuptools'), facts['versions'].get('mmengine')
    if mmengine and release(mmengine) <= (0, 10, 7) and not () < release(setuptools) < (81, ):
        yield Problem('problem',
                      f'mmengine {mmengine} imports pkg_resources, which takes setuptools < 81 and finds '
                      f'{setuptools or "none"}{because(facts, "mmengine")}',
                      'pip install "setuptools<81"')


def check_mmcv_too_new(facts: Facts) -> Iterator[Problem]:
    mmcv = installed(facts, 'mmcv')
    for module, name in (('mmdet', 'mmdet'), ('mmseg', 'mmsegmentation')):
        version = facts['versions'].get(name)
        if version and mmcv and release(facts['versions'][mmcv[0]]) >= (2, 2):
            yield Problem('problem',
                          f'{name} {version} refuses mmcv >= 2.2.0, and {facts["versions"][mmcv[0]]} is here'
                          f'{because(facts, module)}',
                          f'pip uninstall -y {" ".join(mmcv)} && {COMPILE} mmcv==2.1.0')


def check_checkpoints(facts: Facts) -> Iterator[Problem]:
    error = facts.get('checkpoint_error')
    if error:
        name = installed(facts, 'mmengine')[0]
        yield Problem('problem',
                      f'{name} {facts["versions"][name]} cannot load its own checkpoints with torch '
                      f'{facts["versions"].get("torch")} ({error}): testing and --resume fail. mmengine up '
                      'to 0.10.7 does not know the weights_only loading of torch >= 2.6',
                      f'pip uninstall -y mmengine && pip install {pinned("onedl-mmengine")}')


def check_numpy(facts: Facts) -> Iterator[Problem]:
    numpy, torch = facts['versions'].get('numpy'), facts['versions'].get('torch')
    mmseg = facts['versions'].get('onedl-mmsegmentation')
    if torch and release(torch) < (2, 3) and release(numpy) >= (2, ):
        yield Problem('problem',
                      f'torch {torch} was built for numpy 1 and cannot exchange arrays with numpy {numpy}',
                      'pip install "numpy<2"')
    if mmseg and numpy and release(numpy) < (2, ):
        yield Problem('problem',
                      f'onedl-mmsegmentation {mmseg} needs numpy 2, and {numpy} is here',
                      f'pip install {pinned("numpy")}')


def check_ops(facts: Facts) -> Iterator[Problem]:
    if facts['imports'].get('mmcv'):
        return
    on_cpu, on_gpu = facts['ops'].get('cpu'), facts['ops'].get('cuda')
    there = installed(facts, 'mmcv')
    mend = INSTALL
    if on_cpu and facts.get('which_ops') == 'none' and not facts['imports'].get('mmlk'):
        yield Problem('problem', f"mmcv's operators fail ({on_cpu}): it was installed without compiled operators, and "
                      "without the file that puts torchvision's in their place", WRITE)
        return
    if there and there[0] != 'onedl-mmcv':
        mend = (f'pip uninstall -y {" ".join(there)} && {COMPILE} --no-cache-dir --no-deps '
                f'mmcv=={facts["versions"][there[0]]}')
    if on_cpu:
        why = (f'it was compiled for another torch than {facts["versions"].get("torch")}'
               if 'undefined symbol' in on_cpu else 'it was installed without compiled operators'
               if 'mmcv._ext' in on_cpu else 'its compiled operators do not work')
        yield Problem('problem', f"mmcv's operators fail ({on_cpu}): {why}", mend)
    elif on_gpu:
        mend = f'pip uninstall -y {" ".join(there)} && {INSTALL}'
        yield Problem('note',
                      f"mmcv's operators fail on the GPU ({on_gpu}): detection needs them there, "
                      "segmentation does not. They were compiled for the CPU alone; torchvision's, which take their "
                      'place where none are compiled, run on the GPU', mend)


def check_gpu(facts: Facts) -> Iterator[Problem]:
    if facts.get('nvidia_driver') and facts.get('torch_cuda') and not facts['cuda']:
        yield Problem('note',
                      f'there is an NVIDIA driver, but torch (built for CUDA {facts["torch_cuda"]}) finds no '
                      f'GPU: {facts.get("cuda_error") or "none is visible"}',
                      'nvidia-smi  # names the newest CUDA that the driver knows: update the driver, or take '
                      'a torch built for that CUDA (https://pytorch.org/get-started/locally)')


def check_imports(facts: Facts) -> Iterator[Problem]:
    """Whatever cannot be imported and no other check has explained; a shared cause is told once."""
    absent = [module for module in facts['imports']
              if module not in facts['present'] and module not in ('mmlk', *OPTIONAL)]
    toolboxes = [module for module in absent if module in ('mmdet', 'mmseg')]
    if len(toolboxes) == 1:
        absent.remove(toolboxes[0])
        task = {'mmdet': 'detection', 'mmseg': 'segmentation'}[toolboxes[0]]
        yield Problem('note', f'{toolboxes[0]} is not installed: no {task}', INSTALL)
    if absent:
        yield Problem('problem', f'not installed: {", ".join(absent)}', INSTALL)
    told = [f"ModuleNotFoundError: No module named '{module}'" for module in absent]
    told += [problem.text for check in CHECKS if check is not check_imports for problem in check(facts)]
    for module, error in facts['imports'].items():
        lacks = module in (*absent, *toolboxes) or module in OPTIONAL and module not in facts['present']
        if error and not lacks and not any(error in text for text in told):
            told.append(error)
            yield Problem('note' if module in OPTIONAL else 'problem', f'{module} cannot be imported ({error})',
                          EDITABLE if module == 'mmlk' and not absent else OPTIONAL.get(module, INSTALL))


CHECKS: Tuple[Callable[[Facts], Iterator[Problem]], ...] = (
    check_python, check_both_distributions, check_torchvision, check_opencv, check_pkg_resources,
    check_mmcv_too_new, check_checkpoints, check_numpy, check_ops, check_gpu, check_imports)


def diagnose(facts: Facts) -> List[Problem]:
    """All that is wrong with an environment, from what :func:`collect` found out about it."""
    return [problem for check in CHECKS for problem in check(facts)]


def attempt(action: Callable[[], Any]) -> Optional[str]:
    """None if it worked, else the error in one line. What it prints and warns is dropped."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), \
                warnings.catch_warnings():
            warnings.simplefilter('ignore')
            action()
    except Exception as error:
        return ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
    return None


def try_ops(device: str) -> None:
    """Run two of mmcv's operators, one checked by hand and one against torchvision's."""
    import torch
    from mmcv.ops import nms, roi_align
    from torchvision.ops import roi_align as reference
    boxes = torch.tensor([[0., 0., 10., 10.], [1., 1., 11., 11.], [20., 20., 30., 30.]], device=device)
    scores = torch.tensor([.9, .8, .7], device=device)
    # the first two overlap by 81 / 119, the third stands alone
    kept = [nms(boxes, scores, threshold)[1].tolist() for threshold in (.6, .75)]
    if kept != [[0, 2], [0, 1, 2]]:
        raise RuntimeError(f'nms kept {kept}, not [[0, 2], [0, 1, 2]]')
    image = torch.arange(128, dtype=torch.float32, device=device).reshape(1, 2, 8, 8)**1.5
    region = torch.tensor([[0., 1., 1.5, 6., 7.]], device=device)
    ours = roi_align(image, region, (2, 2), 1.0, 2, 'avg', True)
    if not torch.allclose(ours, reference(image, region, (2, 2), 1.0, 2, True), rtol=1e-4):
        raise RuntimeError("roi_align differs from torchvision's")


def which_ops() -> str:
    """What mmcv's operators are here: ``'compiled'``, ``'torchvision'`` (mmlk's file in their place) or ``'none'``."""
    mmcv = importlib.util.find_spec('mmcv')
    folders = list(mmcv.submodule_search_locations or []) if mmcv else []
    extension = importlib.machinery.PathFinder.find_spec('_ext', folders)  # a compiled one comes before a .py file
    if extension is None or not extension.origin:
        return 'none'
    return 'torchvision' if extension.origin.endswith('.py') else 'compiled'


def try_checkpoint() -> None:
    """Load what every checkpoint of mmengine holds, with mmlk's own help if it gives any."""
    import torch
    from mmengine.logging import HistoryBuffer
    from mmengine.runner import CheckpointLoader

    import mmlk.registry  # noqa: F401
    history = HistoryBuffer()
    history.update(1.)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'checkpoint.pth')
        torch.save(dict(message_hub=dict(loss=history)), path)
        CheckpointLoader.load_checkpoint(path, map_location='cpu')


def operator_rows() -> List[Tuple[str, str, Optional[str]]]:
    """(name, device and dtype, why it cannot run) for every convolution backend of mmlk, on RepLKNet's first stage."""
    import torch
    from mmlk.ops import list_backends
    from mmlk.ops.backends import ConvProblem
    rows = []
    for device in ['cpu'] + ['cuda'] * torch.cuda.is_available():
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            problem = ConvProblem(torch.device(device), dtype, 1, 128, 56, 56, 31, 31)
            for backend in list_backends():
                ok, reason = backend.can_run(problem)
                rows.append((backend.name, f'{device} {str(dtype)[6:]}', None if ok else reason))
    return rows


def collect() -> Facts:
    """Everything that :func:`diagnose` and :func:`show` want to know about this environment."""
    facts: Facts = dict(python=platform.python_version(), versions={}, imports={}, present=[], ops={},
                        cuda=[], backends=[], nvidia_driver=os.path.exists('/proc/driver/nvidia/version'))
    for name in ['setuptools'] + [name for names in DISTRIBUTIONS.values() for name in names]:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            facts['versions'][name] = importlib.metadata.version(name)
    for module in DISTRIBUTIONS:
        # the top of mmpretrain imports little of it
        name = 'mmpretrain.datasets' if module == 'mmpretrain' else module
        facts['imports'][module] = attempt(lambda: importlib.import_module(name))
        if importlib.util.find_spec(module):
            facts['present'].append(module)
    failed = facts['imports']
    if not failed['torch']:
        import torch
        facts['torch_cuda'] = torch.version.cuda
        facts['cpu'] = f'{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}'
        if facts['nvidia_driver']:
            facts['cuda_error'] = attempt(torch.cuda.init)
        for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            card = torch.cuda.get_device_properties(index)
            facts['cuda'].append(f'{card.name}, compute capability {card.major}.{card.minor}, '
                                 f'{card.total_memory / 2**30:.0f} GiB')
        if not failed['mmcv']:
            facts['which_ops'] = which_ops()
            for device in ['cpu'] + ['cuda'] * bool(facts['cuda']):
                facts['ops'][device] = attempt(lambda: try_ops(device))
            if not failed['mmlk']:
                facts['checkpoint_error'] = attempt(try_checkpoint)
        if not failed['mmlk']:
            failed['mmlk'] = attempt(lambda: facts['backends'].extend(operator_rows()))
    return facts


def show(facts: Facts) -> None:
    """Print what there is: versions, devices, operators, backends."""

    def row(title: str, text: str) -> None:
        print(f'{title:13} {text}')

    row('python', f'{facts["python"]} on {platform.platform()}')
    for module in DISTRIBUTIONS:
        there = ', '.join(f'{name} {facts["versions"][name]}' for name in installed(facts, module))
        row(module, there or ('importable, not installed' if module in facts['present'] else 'not installed' if
                              module not in OPTIONAL else f'not installed, which is optional: {OPTIONAL[module]}'))
    if 'cpu' in facts:
        row('cpu', facts['cpu'])
        row('gpu', '; '.join(facts['cuda']) or 'none')
    if facts.get('which_ops') == 'compiled':
        row('mmcv.ops', "mmcv's own, compiled: mmcv/_ext is there, and comes before mmlk's file")
    elif facts.get('which_ops') == 'torchvision':
        row('mmcv.ops', "torchvision's, through mmlk: mmcv was installed without compiled operators")
    for device, error in facts['ops'].items():
        row('', f'{device}: {error or "nms and roi_align give the right answers"}')
    for place in dict.fromkeys(place for _, place, _ in facts['backends']):
        rows = [(name, reason) for name, where, reason in facts['backends'] if where == place]
        row('convolution', f'{place}: {", ".join(name for name, reason in rows if reason is None)}')
        for name, reason in rows:
            if reason is not None:
                row('', f'  not {name}: {reason}')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--ops', choices=['cpu', 'cuda'], help="only try mmcv's operators, on this device")
    parser.add_argument('--which-ops', action='store_true',
                        help="only say what mmcv's operators are: compiled, torchvision or none")


def run(args: argparse.Namespace) -> int:
    if args.which_ops:
        print(which_ops())
        return 0
    if args.ops:
        error = attempt(lambda: try_ops(args.ops))
        print(error or 'ok')
        return int(error is not None)
    facts = collect()
    show(facts)
    problems = diagnose(facts)
    for problem in problems:
        print(f'\n{problem.level}: {problem.text}\n  mend it with:  {problem.mend}')
    if any('tools/' in problem.mend for problem in problems) and not (ROOT / 'tools').is_dir():
        print('\ntools/install.sh is in a checkout of mmlk')
    broken = sum(problem.level == 'problem' for problem in problems)
    print(f'\n{broken or "no"} problem{"s" * (broken > 1)} found')
    return int(broken > 0)


def main() -> int:
    """The command as ``tools/doctor.py``, with the arguments of this process; returns the exit code."""
    description = __doc__.replace('mmlk doctor', 'python tools/doctor.py')
    parser = argparse.ArgumentParser(prog='doctor.py', description=description,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    return run(parser.parse_args())
