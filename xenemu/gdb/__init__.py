"""The debugger's side of a machine: gdb's remote serial protocol, and what it asks."""
