"""``python -m plugin`` is the ``wchan`` command."""

import sys

from plugin.hosts.shell import main

sys.exit(main())
