"""`python -m updater.cli`, which is how the service starts its own steps."""

import sys

from updater.cli import main

sys.exit(main())
