"""Check the datasets of a config before a run: are they there, can every file be read, do the labels fit.

``python tools/check_data.py --help`` describes the options.
``mmlk check-data`` is the same command, whose code is mmlk/cli/check_data.py.
"""
from mmlk.cli import run_tool


def main() -> None:
    run_tool('check-data')


if __name__ == '__main__':
    main()
