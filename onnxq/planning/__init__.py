"""What a run will take, foreseen: memory, time and disk of every stage, from shapes alone."""
