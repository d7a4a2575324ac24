"""The report a paper needs: models side by side, every number with where it comes from.

``python tools/compare.py --help`` describes the options.
``mmlk compare`` is the same command, whose code is mmlk/cli/compare.py.
"""
from mmlk.cli import run_tool


def main() -> None:
    run_tool('compare')


if __name__ == '__main__':
    main()
