"""Machines worth looking at, each a function that describes one and returns it.

A scenario takes the kernel it is to run (``osreldate``, ``arch``, ``variant``)
where it makes sense under more than one, and gives back a Machine to be
written with ``write(directory)``.
"""
