"""Pure x86: page-table entries, descriptors, flags, vectors. Facts and functions, no state."""
