"""Test a segmentor or a detector.

``python tools/test.py --help`` describes the options.
``mmlk test`` is the same command, whose code is mmlk/cli/test.py.
"""
from mmlk.cli import run_tool


def main() -> None:
    run_tool('test')


if __name__ == '__main__':
    main()
