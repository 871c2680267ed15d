"""Run the command line as `python -m tinyvlm_cli`."""

import sys

from tinyvlm_cli.cli.main import main

sys.exit(main())
