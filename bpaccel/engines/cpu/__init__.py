"""The fused engine for processors: the library of kernels, their plan, where numbers lie, and the launch of a run."""
