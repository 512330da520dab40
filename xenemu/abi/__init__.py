"""Xen's public interface: a module for each public header, with the header's path and names.

`xenemu.abi.layout` declares structs whose ``unsigned long`` and pointers have the guest's width.
Structs and fields have the header's names, so one grep works in both trees.
"""
