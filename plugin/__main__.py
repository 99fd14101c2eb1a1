"""``python -m plugin`` is the ``wchan`` command."""

import sys

from plugin.cli import main

sys.exit(main())
