"""The former name of `tools/sweep.py`, so that commands written down with older results still run."""

if __name__ == "__main__":
    from pretrain.command.console import end_on_interrupt

    end_on_interrupt()

import sys

from sweep import main

if __name__ == "__main__":
    print("tools/depth_sweep.py is now tools/sweep.py", file=sys.stderr)
    sys.exit(main())
