"""The hypervisor's model, shared by PV and PVH: it never sees the engine, only `hv.cpu`'s Protocols."""
