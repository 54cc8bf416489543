"""The former name of `tools/sweep.py`, so that commands written down with older results still run."""

import sys

from sweep import main

if __name__ == "__main__":
    print("tools/depth_sweep.py is now tools/sweep.py", file=sys.stderr)
    sys.exit(main())
