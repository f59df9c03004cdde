"""What prefilling a prompt while it is still being written is worth: the micro-benchmark of incremental prefill."""
