"""What Xen offers to HVM and PVH guests, as its public headers have it."""
