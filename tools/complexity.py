"""Parameters and FLOPs of a config's model, module by module, in training and in merged form.

``python tools/complexity.py --help`` describes the options.
``mmlk complexity`` is the same command, whose code is mmlk/cli/complexity.py.
"""
from mmlk.cli import run_tool


def main() -> None:
    run_tool('complexity')


if __name__ == '__main__':
    main()
