"""A guest's network outside of it: what is asked for, and the wires that carry packets.

A wire implements `xenemu.machine.Source`. It carries whole Ethernet frames.
"""

from xenemu.network.asked import FORMS, Asked, parse_net
from xenemu.network.wired import Wired, connected

__all__ = ["FORMS", "Asked", "Wired", "connected", "parse_net"]
