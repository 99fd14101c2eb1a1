"""ZFS: from a condition variable in its structures to the I/O, the thread or the pool behind it.

The structures' layouts say what a wait channel lies in; plugin.judge.zfs, where each zio is
and who holds a transaction group open.  What memory does not tell is guessed by stacks, and
said to be; what not even those tell is said to be unknown, with the reason.
"""
