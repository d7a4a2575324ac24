"""``python -m mmlk`` runs the command ``mmlk``."""
from mmlk.cli import main

if __name__ == '__main__':
    main()
