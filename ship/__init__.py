"""Makes what is shipped beside the code."""
