"""Run the command line with `python -m tinyvlm_cli`."""

import sys

if not sys.flags.safe_path:
    del sys.path[0]  # the working directory, in which a file could replace a package

from tinyvlm_cli.cli.main import main

sys.exit(main())
