"""What the hypervisor keeps of a guest, as plain data; the rules for it are in `xenemu.hv`."""
