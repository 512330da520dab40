"""A Xen hypervisor in a process: boots PV and PVH guests on a software CPU."""

__version__ = "0.1.0"
