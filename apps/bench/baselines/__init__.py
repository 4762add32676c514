"""What PyTorch does with the work of an MoE layer, for comparison with airmoe on the same device."""
