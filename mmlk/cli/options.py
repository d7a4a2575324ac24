"""Options that several commands share. Importing this module imports neither PyTorch nor OpenMMLab."""
import argparse
import importlib.util
import inspect
import shlex
import sys
from pathlib import Path
from typing import Any, NoReturn, Optional, Sequence

from mmlk._text import printable

DEVICE_HELP = "(default: 'cuda' where PyTorch finds a GPU, else 'cpu')"


def fail(message: str) -> NoReturn:
    """End the program with one message on stderr and exit code 2."""
    print(printable(f'error: {message}'), file=sys.stderr)
    raise SystemExit(2)


class ConfigOptions(argparse.Action):
    """:class:`mmengine.config.DictAction`, imported when the option is given and not before."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Sequence[str],
                 option_string: Optional[str] = None) -> None:
        from mmengine.config import DictAction
        DictAction(self.option_strings, self.dest, nargs=self.nargs)(parser, namespace, values, option_string)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """``--cfg-options``, as in the stock tools."""
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE',
                        help='override settings of the config, e.g. train_dataloader.batch_size=4')


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that ``train`` and ``test`` share with the stock tools."""
    parser.add_argument('--work-dir', help='where logs and checkpoints go; work_dirs/<config name> by default')
    add_config_options(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
                        help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def add_device(parser: argparse.ArgumentParser, help: str = DEVICE_HELP) -> None:
    """``--device``; :func:`choose_device` has its default."""
    parser.add_argument('--device', help=help)


def choose_device(name: Optional[str]) -> str:
    """``--device`` as given, else ``'cuda'`` where PyTorch finds a GPU and ``'cpu'`` where it does not."""
    import torch
    return name or ('cuda' if torch.cuda.is_available() else 'cpu')


def check_device(name: Optional[str]) -> str:
    """:func:`choose_device`, and end the program with one message if PyTorch cannot use that device."""
    import torch
    name = choose_device(name)
    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError) as error:  # PyTorch's message may be many lines long
        fail(f'--device {name}: {str(error).splitlines()[0]}')
    return name


def check_minimum(args: argparse.Namespace, **minimum: Any) -> None:
    """End the program with one message if an option is below its minimum; options that are None are left out."""
    for name, least in minimum.items():
        value = getattr(args, name)
        if value is not None and value < least:
            fail(f"--{name.replace('_', '-')} must be at least {least}, got {value}")


def conventions(module: str) -> str:
    """The docstring of a module from its second paragraph on. The file is read, the module is not imported."""
    import ast
    source = Path(importlib.util.find_spec(module).origin).read_text(encoding='utf-8')
    return inspect.cleandoc(ast.get_docstring(ast.parse(source))).split('\n\n', 1)[1]


def command_line() -> str:
    """The command that started this process, to be written into a report."""
    script = Path(sys.argv[0]).name
    if script == '__main__.py':
        return shlex.join(['python', '-m', 'mmlk', *sys.argv[1:]])
    return shlex.join(['python', *sys.argv] if script.endswith('.py') else ['mmlk', *sys.argv[1:]])
