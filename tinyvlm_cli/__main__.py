"""`python -m tinyvlm_cli`."""

import sys

from tinyvlm_cli.cli import main

sys.exit(main())
