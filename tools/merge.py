"""Merge the parallel branches of a trained model.

``python tools/merge.py --help`` describes the options.
``mmlk merge`` is the same command, whose code is mmlk/cli/merge.py.
"""
from mmlk.cli import run_tool


def main() -> None:
    run_tool('merge')


if __name__ == '__main__':
    main()
