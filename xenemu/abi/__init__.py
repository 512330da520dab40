"""Xen's public interface: one module per public header, under the header's own path and names.

`xenemu.abi.layout` declares structs whose ``unsigned long`` and pointers follow the guest's
width. Field and struct names are the header's, so that a grep works in both trees.
"""
