"""Effective receptive fields of one or more networks, as RepLKNet measures them: how far each really sees.

``python tools/erf.py --help`` describes the options.
``mmlk erf`` is the same command, whose code is mmlk/cli/erf.py.
"""
from mmlk.cli import run_tool


def main() -> None:
    run_tool('erf')


if __name__ == '__main__':
    main()
