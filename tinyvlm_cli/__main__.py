"""Run the command line with `python -m tinyvlm_cli`."""

import sys

from tinyvlm_cli.cli.main import main

sys.exit(main())
