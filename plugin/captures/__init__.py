"""Text instead of memory: what a console, a mail or a bug report says of a stuck kernel.

``read`` turns files (DDB logs, textdumps, procstat, ps, top, core.txt, debuggers' sessions,
quoted or not) into Captures, one for each machine state found in them.  What is not
understood is counted, never fatal.
"""

from __future__ import annotations
