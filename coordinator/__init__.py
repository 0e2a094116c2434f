"""What the coordinator does: plan, reduce, optimise, stop, export. Knows workers only as a Pool."""
