"""What only paravirtual domains have: their builder, traps, descriptor tables and emulation."""
