"""Look at this environment, say what mmlk can do in it, and for each problem the command that mends it.

``python tools/doctor.py --help`` describes the options.
``mmlk doctor`` is the same command, whose code is mmlk/cli/doctor.py. It is run from that file, not imported as a part
of mmlk, which need not be installed here.
"""
import runpy
import sys
from pathlib import Path

CODE = Path(__file__).resolve().parent.parent / 'mmlk' / 'cli' / 'doctor.py'

if __name__ == '__main__':
    sys.exit(runpy.run_path(str(CODE))['main']())
