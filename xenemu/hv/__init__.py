"""The hypervisor's model, shared by PV and PVH; it sees the engine only as `hv.cpu` tells."""
