"""What drafts are worth: tokens per step, on recorded answers and on workers."""
