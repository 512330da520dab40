"""What dom0 does for a guest: a backend each, none registered by import."""
