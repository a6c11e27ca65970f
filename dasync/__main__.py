"""`python -m dasync`: the command line, where no script is installed. It only calls `dasync.cli.main`."""

import sys

from dasync.cli import main

sys.exit(main())
