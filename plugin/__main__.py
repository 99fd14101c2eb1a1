"""``python -m plugin`` is the ``wchan`` command."""

import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C while modules are loaded is no place for a traceback; main() takes it over.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from plugin.hosts.shell import main

sys.exit(main())
