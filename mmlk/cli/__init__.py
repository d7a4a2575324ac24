"""The command line: ``mmlk COMMAND``, and the same commands as ``tools/*.py``.

A command is a module of this package. Its docstring is the description that ``--help`` shows, ``add_arguments(parser)``
declares its options, and ``run(args)`` does the work and returns the exit code (None stands for 0). A module is
imported when its command is chosen, and imports PyTorch and OpenMMLab inside ``run`` only, so that help appears at
once.
"""
import argparse
import difflib
import importlib
import sys
from typing import Dict, NamedTuple, NoReturn, Optional, Sequence

from mmlk.cli.options import fail


class Command(NamedTuple):
    """``name`` is that of the command's module in this package, and of its script in ``tools/``."""
    name: str
    summary: str


COMMANDS: Dict[str, Command] = {
    'train': Command('train', 'train a segmentor, a detector or a classifier'),
    'test': Command('test', 'test a segmentor, a detector or a classifier'),
    'predict': Command('predict', 'predict images, folders of images and videos'),
    'show-predictions': Command('show_predictions', 'draw image, ground truth and prediction side by side'),
    'weights': Command('weights', 'list, download and inspect pretrained and trained weights'),
    'merge': Command('merge', 'merge the parallel branches of a trained model'),
    'export': Command('export', 'write a trained model as ONNX, TorchScript or an exported program'),
    'complexity': Command('complexity', 'count parameters and FLOPs, module by module'),
    'benchmark': Command('benchmark', 'measure latency, throughput and memory of models'),
    'benchmark-ops': Command('benchmark_ops', "compare the depthwise operator with PyTorch's own"),
    'gpu-check': Command('gpu_check', 'prove the depthwise operator on a GPU'),
    'erf': Command('erf', 'measure effective receptive fields'),
    'cam': Command('cam', 'draw class-activation maps'),
    'demo': Command('demo', 'compare two models in a browser, with their receptive fields'),
    'shape-bias': Command('shape_bias', 'measure the shape bias of classifiers'),
    'compare': Command('compare', 'train, test and measure several models, and write a report'),
    'check-data': Command('check_data', 'check the datasets of a config before a run'),
    'demo-data': Command('make_demo_data', 'write synthetic demo scenes in the layout of a real dataset'),
    'doctor': Command('doctor', 'find problems of this installation, and how to solve them'),
}


def overview() -> str:
    """What ``mmlk --help`` prints: every command with its summary."""
    width = max(map(len, COMMANDS))
    return '\n'.join(['usage: mmlk COMMAND [argument ...]', '',
                      "Large-kernel backbones for OpenMMLab's segmentation and detection toolboxes.", '', 'commands:',
                      *(f'  {name:{width}}  {command.summary}' for name, command in COMMANDS.items()), '',
                      'options:', f'  {"-h, --help":{width}}  show this help message and exit',
                      f'  {"--version":{width}}  print the version of mmlk and exit', '',
                      'mmlk COMMAND --help describes the arguments of a command.'])


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """The command ``mmlk``.

    Args:
        arguments: Those after the word ``mmlk``; by default the arguments of this process.

    Raises:
        SystemExit: with the exit code, where that is not 0, and after help.
    """
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ['']
    if name in ('-h', '--help'):
        print(overview())
    elif name == '--version':
        from mmlk import __version__
        print(f'mmlk {__version__}')
    elif name in COMMANDS:
        execute(name, f'mmlk {name}', f'mmlk {name}', rest)
    else:
        unknown(name)


def unknown(name: str) -> NoReturn:
    """End the program with one message about a command that does not exist."""
    if not name:
        fail('mmlk needs a command; mmlk --help lists them')
    near = difflib.get_close_matches(name.replace('_', '-'), COMMANDS)
    fail(f'there is no command {name!r}; ' + (f"did you mean {' or '.join(near)}? " if near else '')
         + 'mmlk --help lists all commands')


def run_tool(name: str) -> None:
    """The command as a script of ``tools/``, with the arguments of this process.

    Args:
        name: Of the command, a key of :data:`COMMANDS`.

    Raises:
        SystemExit: with the exit code, where that is not 0, and after help.
    """
    script = f'{COMMANDS[name].name}.py'
    execute(name, script, f'python tools/{script}', sys.argv[1:])


def execute(name: str, program: str, example: str, arguments: Sequence[str]) -> None:
    """Parse the arguments of a command, and run it.

    Args:
        name: Of the command, a key of :data:`COMMANDS`.
        program: What the usage line begins with.
        example: What stands in the description for ``mmlk <name>``.
        arguments: Those of the command.

    Raises:
        SystemExit: with the exit code, where that is not 0, and after help.
    """
    command = importlib.import_module(f'mmlk.cli.{COMMANDS[name].name}')
    parser = argparse.ArgumentParser(prog=program, description=command.__doc__.replace(f'mmlk {name}', example),
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_arguments(parser)
    status = command.run(parser.parse_args(arguments))
    if status:
        sys.exit(status)
