"""What all experiments share: folders, statistics, tables, progress, what is measured, how a command ends."""
