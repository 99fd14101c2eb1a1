"""ZFS: pools, vdevs and their queues, zios, transaction groups, buffers, the log, its locks.

Walkers only.  Mirrors sys/contrib/openzfs (13.0 on) and sys/cddl/contrib/opensolaris (9.3 to
12.x), one module for each of its own files' subjects.  ZFS is a module as a rule: its
variables are found by the symbols that the kernel keeps of it, and where there are none its
pools are found through the mounts and the sleepers.
"""
